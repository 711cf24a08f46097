/* Vectors in whole numbers of eight bits, and how far that takes them away.

   A vector is written as x = scale · (codes + rest), with whole codes. Processors that sum products of bytes in 32 bits
   (VNNI) take all of eight bits. For the others a block of codes has a norm of at most 180, so by the inequality of
   Cauchy and Schwarz the inner product of two blocks fits into sixteen bits.

   The keys of a panel share one scale, so that one comparison of whole numbers serves all of them. Key codes are stored
   plus 128, because the instruction that multiplies them wants one side without a sign. */

#ifndef LONGMEM_CODES_H
#define LONGMEM_CODES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "products.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "groups of codes are put together as on little-endian processors"
#endif

/* A sum has SUM_BITS, and a step adds the products of GROUP codes to it. A panel is PARTS vectors of LANES sums, a tile
   ROWS queries: all their sums stay in registers. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define LONGMEM_VNNI
enum { SUM_BITS = 32, LANES = 16, PARTS = 4, ROWS = 6 };
typedef uint32_t word;
typedef int32_t signed_word;
#else
#if defined(__AVX512BW__)
enum { SUM_BITS = 16, LANES = 32, PARTS = 2, ROWS = 12 };
#elif defined(__AVX2__)
enum { SUM_BITS = 16, LANES = 16, PARTS = 2, ROWS = 6 };
#else
enum { SUM_BITS = 16, LANES = 8, PARTS = 2, ROWS = 6 };
#endif
typedef uint16_t word;
typedef int16_t signed_word;
#endif
/* Greatest and least limits of sums, as float32 can say them. */
static const float LEAST_LIMIT = SUM_BITS == 16 ? INT16_MIN : INT32_MIN;
static const float MOST_LIMIT = SUM_BITS == 16 ? INT16_MAX : 0x1p31f - 0x1p7f;
enum { GROUP = SUM_BITS / 8, COLS = PARTS * LANES };
/* The greatest codes. */
enum { KEY_LIMIT = 127, QUERY_LIMIT = SUM_BITS == 16 ? 64 : 127, KEY_OFFSET = 128 };
/* Sketch columns whose products fit into one sum. */
enum { BLOCK = SUM_BITS == 16 ? 64 : 1 << 16 };

/* (RADIUS + what rounding adds to the norm of a block, at most 4)² stays below 2^15. */
static const float RADIUS = SUM_BITS == 16 ? 176 : INFINITY;
/* Squares of smaller vectors are no normal numbers: they are not coded, and every key passes. */
static const float SMALLEST_SCALE = 1e-15f;
/* Adding and subtracting it rounds to a whole number. */
static const float ROUNDING = 0x1.8p23f;

typedef uint64_t pairs_of_numbers __attribute__((vector_size(4 * FLOATS)));
typedef signed_word slot_limits __attribute__((vector_size(sizeof(word) * FLOATS)));
typedef word words __attribute__((vector_size(sizeof(word) * LANES)));
typedef signed_word signed_words __attribute__((vector_size(sizeof(word) * LANES)));

/* Of sketches: `width` is padded, `lost_bits` is how many low bits a block's sum loses, so that one sum holds the
   total. */
typedef struct {
    int64_t width, blocks;
    int lost_bits;
} shape;

static inline shape shape_of(int64_t width) {
    const int64_t padded = (width + FLOATS - 1) / FLOATS * FLOATS;
    shape of = {padded, (padded + BLOCK - 1) / BLOCK, 0};
    while ((int64_t)1 << of.lost_bits < of.blocks)
        of.lost_bits++;
    return of;
}

static inline floats size_of(floats values) { return (floats)((numbers)values & INT32_MAX); }

/* The second, where one is not a number. */
static inline floats larger(floats a, floats b) {
#if defined(__AVX2__)
    return (floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    const numbers first = a > b;
    return (floats)(((numbers)a & first) | ((numbers)b & ~first));
#endif
}

static inline floats smaller(floats a, floats b) {
#if defined(__AVX2__)
    return (floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
    const numbers first = a < b;
    return (floats)(((numbers)a & first) | ((numbers)b & ~first));
#endif
}

/* How large vectors are: the greatest sum of squares of a block and of a whole vector, and the largest numbers. */
typedef struct {
    float of_block, of_vector;
    floats largest;
    int finite;
} extent;

/* Measure one more vector, which is padded with zeros. */
static inline void measure(const float *x, int64_t width, extent *all) {
    float total = 0;
    for (int64_t first = 0; first < width; first += BLOCK) {
        floats squares = {0};
        for (int64_t i = first; i < width && i < first + BLOCK; i += FLOATS) {
            const floats part = load(x + i);
            squares += part * part;
            all->largest = larger(size_of(part), all->largest);
        }
        const float square = sum_of(squares);
        all->finite &= square < INFINITY;
        all->of_block = square > all->of_block ? square : all->of_block;
        total += square;
    }
    all->of_vector = total > all->of_vector ? total : all->of_vector;
}

/* The smallest scale with which the codes of these vectors fit. 0 is that of zeros only; INFINITY and one below
   SMALLEST_SCALE say that they cannot be coded. */
static inline float scale_for(const extent *all, float limit) {
    float most = 0;
    if (!all->finite)
        return INFINITY;
    for (int lane = 0; lane < FLOATS; lane++)
        most = all->largest[lane] > most ? all->largest[lane] : most;
    const float by_norm = sqrtf(all->of_block) / RADIUS, by_limit = most / limit;
    const float scale = by_norm > by_limit ? by_norm : by_limit;
    return most > 0 && scale == 0 ? most : scale;
}

static inline int can_be_coded(float scale) { return scale == 0 || (scale >= SMALLEST_SCALE && scale < INFINITY); }

typedef struct {
    float scale, length, rest; /* length: |A|, rest: |rest_a| */
} query_bounds;

/* Queries, one after the other. */
typedef struct {
    int32_t *groups; /* [width / GROUP] for each: GROUP codes, as often as there is room for them */
    word *starts;    /* [blocks] for each: what the sum of a block begins with */
    query_bounds *bounds;
} coded_queries;

/* `x` is used up. */
static inline void code_query(float *x, shape of, coded_queries into, int64_t row) {
    const int64_t width = of.width, blocks = of.blocks;
    extent size = {.finite = 1};
    measure(x, width, &size);
    const float scale = scale_for(&size, QUERY_LIMIT);
    if (can_be_coded(scale)) {
        const float inverse = scale > 0 ? 1 / scale : 0;
        floats squares = {0}, rests = {0};
        for (int64_t i = 0; i < width; i += FLOATS) {
            const floats exact = load(x + i) * inverse, code = (exact + ROUNDING) - ROUNDING;
            squares += code * code, rests += (exact - code) * (exact - code);
            memcpy(x + i, &code, sizeof code);
        }
        into.bounds[row] = (query_bounds){scale, sqrtf(sum_of(squares)), sqrtf(sum_of(rests))};
    } else {
        /* such bounds let every key pass */
        memset(x, 0, width * sizeof *x);
        into.bounds[row] = (query_bounds){1, 0, INFINITY};
    }
    for (int64_t block = 0; block < blocks; block++) {
        int32_t sum = 0;
        for (int64_t i = block * BLOCK; i < width && i < (block + 1) * BLOCK; i += GROUP) {
            uint32_t group = 0;
            for (int each = 0; each < GROUP; each++) {
                const int32_t code = (int32_t)x[i + each];
                sum += code;
                group |= (uint32_t)(code & 0xff) << 8 * each;
            }
            into.groups[(row * width + i) / GROUP] = (int32_t)(GROUP == 2 ? group * 0x10001u : group);
        }
        into.starts[row * blocks + block] = (word)(-KEY_OFFSET * sum);
    }
}

/* The keys of a panel: `codes` holds GROUP codes of each of COLS keys, then the next ones of each. */
typedef struct {
    float inverse, length, rest; /* of the scale; the largest |b| / scale and |rest_b| in it */
} panel_bounds;

enum { SIDE = 4 }; /* keys whose codes are stored together */

/* The lowest bytes of FLOATS numbers of each key, to the places of these keys in one group after the other. */
static inline void store_codes(const floats numbers_of[SIDE], uint8_t *codes) {
#if defined(LONGMEM_VNNI)
    __m128i keys[SIDE];
    for (int key = 0; key < SIDE; key++)
        keys[key] = _mm256_cvtepi32_epi8((__m256i)numbers_of[key]);
    const __m128i front = _mm_unpacklo_epi32(keys[0], keys[1]), back = _mm_unpacklo_epi32(keys[2], keys[3]);
    _mm_storeu_si128((__m128i *)codes, _mm_unpacklo_epi64(front, back));
    _mm_storeu_si128((__m128i *)(codes + COLS * GROUP), _mm_unpackhi_epi64(front, back));
#else
    pairs_of_numbers together = {0};
    for (int key = 0; key < SIDE; key++) {
        /* the second number of a pair is the upper half, and goes beside the first */
        const pairs_of_numbers pair = (pairs_of_numbers)numbers_of[key];
        together |= ((pair & 0xff) | (pair >> 24 & 0xff00)) << 16 * key;
    }
    for (int pair = 0; pair < FLOATS / 2; pair++) {
        const uint64_t side = together[pair];
        memcpy(codes + pair * COLS * GROUP, &side, sizeof side);
    }
#endif
}

/* `of_keys` are COLS padded keys. */
static inline panel_bounds code_panel(const float *const *of_keys, int64_t width, uint8_t *codes) {
    extent size = {.finite = 1};
    for (int col = 0; col < COLS; col++)
        measure(of_keys[col], width, &size);
    const float scale = scale_for(&size, KEY_LIMIT);
    if (!can_be_coded(scale)) {
        /* every key passes */
        memset(codes, 0, COLS * width);
        return (panel_bounds){1, 0, INFINITY};
    }
    const float inverse = scale > 0 ? 1 / scale : 0;
    float most = 0;
    for (int col = 0; col < COLS; col += SIDE) {
        floats rests[SIDE] = {0};
        for (int64_t i = 0; i < width; i += FLOATS) {
            floats plain[SIDE];
            for (int key = 0; key < SIDE; key++) {
                /* rounds as ROUNDING does, and leaves code + KEY_OFFSET in the lowest byte */
                const floats exact = load(of_keys[col + key] + i) * inverse;
                plain[key] = exact + (ROUNDING + KEY_OFFSET);
                const floats code = plain[key] - (ROUNDING + KEY_OFFSET);
                rests[key] += (exact - code) * (exact - code);
            }
            store_codes(plain, codes + i * COLS + col * GROUP);
        }
        for (int key = 0; key < SIDE; key++) {
            const float rest = sum_of(rests[key]);
            most = rest > most ? rest : most;
        }
    }
    return (panel_bounds){1 / scale, scale > 0 ? sqrtf(size.of_vector) / scale : 0, sqrtf(most)};
}

#endif
