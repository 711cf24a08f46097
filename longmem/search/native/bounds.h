/* Upper bounds of inner products from whole numbers of eight bits.

   A vector is written as x = scale · (codes + rest), with whole codes. Then for a query a and a key b

       a · b  =  s_a s_b (A · B  +  A · rest_b  +  rest_a · b / s_b)
             ≤  s_a s_b (A · B  +  |A| |rest_b|  +  |rest_a| |b| / s_b),

   and A · B is exact. It is summed in sixteen bits, four times as many terms in an instruction as in float32. A block
   of codes has a norm of at most 180, so by the inequality of Cauchy and Schwarz its sum fits, whatever wraps around on
   the way; longer vectors are several blocks, whose sums lose a few low bits before they are added.

   The keys of a panel share one scale, so that one comparison of whole numbers serves all of them. Key codes are stored
   plus 128, because the instruction wants one side without a sign; each sum starts at what takes that away again. */

#ifndef LONGMEM_BOUNDS_H
#define LONGMEM_BOUNDS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "products.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pairs of codes are put together as on little-endian processors"
#endif

#if defined(__AVX512BW__)
enum { LANES = 32, ROWS = 12, VECTORS = 2 };
#elif defined(__AVX2__)
enum { LANES = 16, ROWS = 6, VECTORS = 1 };
#else
enum { LANES = 8, ROWS = 6, VECTORS = 1 };
#endif
/* Keys of a panel. A tile is ROWS queries: its sums with a panel stay in registers. */
enum { COLS = 2 * LANES };
/* Sketch columns whose products are summed in sixteen bits; the greatest codes. */
enum { BLOCK = 64, KEY_LIMIT = 127, QUERY_LIMIT = 64, KEY_OFFSET = 128 };

/* (RADIUS + what rounding adds to the norm of a block, at most 4)² stays below 2^15. */
static const float RADIUS = 176;
/* Squares of smaller vectors are no normal numbers: they are not coded, and every key passes. */
static const float SMALLEST_SCALE = 1e-15f;
/* Adding and subtracting it rounds to a whole number. */
static const float ROUNDING = 0x1.8p23f;

typedef int32_t numbers __attribute__((vector_size(4 * FLOATS)));
typedef uint64_t pairs_of_numbers __attribute__((vector_size(4 * FLOATS)));
typedef int16_t shorts __attribute__((vector_size(2 * FLOATS)));
typedef uint16_t words __attribute__((vector_size(2 * LANES)));

/* Of sketches: `width` is padded, `lost_bits` is how many low bits a block's sum loses, so that sixteen bits hold the
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

static inline floats larger(floats a, floats b) {
    const numbers first = a > b;
    return (floats)(((numbers)a & first) | ((numbers)b & ~first));
}

static inline floats smaller(floats a, floats b) {
    const numbers first = a < b;
    return (floats)(((numbers)a & first) | ((numbers)b & ~first));
}

static inline float length_of(const float *x, int64_t width) {
    floats squares = {0};
    for (int64_t i = 0; i < width; i += FLOATS)
        squares += load(x + i) * load(x + i);
    return sqrtf(sum_of(squares));
}

/* The smallest scale with which the codes of a vector fit, which is padded with zeros. 0 is that of zeros only; one
   that is not a number, infinite or below SMALLEST_SCALE says that it cannot be coded. */
static inline float scale_for(const float *x, int64_t width, float limit) {
    float largest_square = 0, most = 0;
    floats largest = {0};
    for (int64_t first = 0; first < width; first += BLOCK) {
        floats squares = {0};
        for (int64_t i = first; i < width && i < first + BLOCK; i += FLOATS) {
            const floats part = load(x + i);
            squares += part * part;
            largest = larger(size_of(part), largest);
        }
        const float square = sum_of(squares);
        if (!(square < INFINITY))
            return square;
        largest_square = square > largest_square ? square : largest_square;
    }
    for (int lane = 0; lane < FLOATS; lane++)
        most = largest[lane] > most ? largest[lane] : most;
    const float by_norm = sqrtf(largest_square) / RADIUS, by_limit = most / limit;
    const float scale = by_norm > by_limit ? by_norm : by_limit;
    return most > 0 && scale == 0 ? most : scale;
}

static inline int can_be_coded(float scale) { return scale == 0 || (scale >= SMALLEST_SCALE && scale < INFINITY); }

/* Writes the codes as floats in place of the vector, and returns |rest|. */
static inline float encode(float *x, int64_t width, float scale) {
    const float inverse = scale > 0 ? 1 / scale : 0;
    floats rests = {0};
    for (int64_t i = 0; i < width; i += FLOATS) {
        const floats exact = load(x + i) * inverse, code = (exact + ROUNDING) - ROUNDING;
        rests += (exact - code) * (exact - code);
        memcpy(x + i, &code, sizeof code);
    }
    return sqrtf(sum_of(rests));
}

typedef struct {
    float scale, length, rest; /* length: |A|, rest: |rest_a| */
} query_bounds;

/* For sums that are estimates, not bounds. */
static inline query_bounds without_rests(query_bounds query) { return (query_bounds){query.scale, 0, 0}; }

/* Queries, one after the other. */
typedef struct {
    int32_t *pairs;   /* [width / 2] for each: two codes, twice */
    uint16_t *starts; /* [blocks] for each: what the sum of a block begins with */
    query_bounds *bounds;
} coded_queries;

/* `x` is used up. */
static inline void code_query(float *x, shape of, coded_queries into, int64_t row) {
    const int64_t width = of.width, blocks = of.blocks;
    const float scale = scale_for(x, width, QUERY_LIMIT);
    if (can_be_coded(scale)) {
        const float rest = encode(x, width, scale);
        into.bounds[row] = (query_bounds){scale, length_of(x, width), rest};
    } else {
        /* such bounds let every key pass */
        memset(x, 0, width * sizeof *x);
        into.bounds[row] = (query_bounds){1, 0, INFINITY};
    }
    for (int64_t block = 0; block < blocks; block++) {
        int32_t sum = 0;
        for (int64_t i = block * BLOCK; i < width && i < (block + 1) * BLOCK; i += 2) {
            const int32_t even = (int32_t)x[i], odd = (int32_t)x[i + 1];
            sum += even + odd;
            into.pairs[(row * width + i) / 2] =
                (int32_t)(((uint32_t)(even & 0xff) | (uint32_t)(odd & 0xff) << 8) * 0x10001u);
        }
        into.starts[row * blocks + block] = (uint16_t)(-KEY_OFFSET * sum);
    }
}

/* The keys of a panel: `codes` holds two codes of each of COLS keys, then the next two of each. */
typedef struct {
    float inverse, length, rest; /* of the scale; the largest |b| / scale and |rest_b| in it */
} panel_bounds;

/* `rows` holds COLS padded keys and is used up. */
static inline panel_bounds code_panel(float *rows, int64_t width, uint16_t *codes) {
    float scale = 0, length = 0, most = 0;
    int coded = 1;
    for (int col = 0; col < COLS; col++) {
        const float needed = scale_for(rows + col * width, width, KEY_LIMIT);
        const float key_length = length_of(rows + col * width, width);
        scale = needed > scale ? needed : scale;
        length = key_length > length ? key_length : length;
        coded &= needed < INFINITY;
    }
    coded &= can_be_coded(scale);
    if (!coded)
        memset(rows, 0, COLS * width * sizeof *rows);
    for (int col = 0; col < COLS; col++) {
        float *row = rows + col * width;
        const float rest = encode(row, width, coded ? scale : 0);
        most = rest > most ? rest : most;
        for (int64_t i = 0; i < width; i += FLOATS) {
            const pairs_of_numbers plain =
                (pairs_of_numbers)(__builtin_convertvector(load(row + i), numbers) + KEY_OFFSET);
            /* the second number of a pair is the upper half, and goes beside the first */
            const pairs_of_numbers beside = plain | plain >> 24;
            for (int pair = 0; pair < FLOATS / 2; pair++)
                codes[(i / 2 + pair) * COLS + col] = (uint16_t)beside[pair];
        }
    }
    /* every key passes where one cannot be coded */
    return coded ? (panel_bounds){1 / scale, scale > 0 ? length / scale : 0, most} : (panel_bounds){1, 0, INFINITY};
}

/* What the bounds of ROWS queries need beside their sums, thresholds in units of their scales. */
typedef struct {
    floats thresholds[VECTORS], lengths[VECTORS], rests[VECTORS];
} tile;

static inline void set_query(tile *of, int place, query_bounds query, float threshold) {
    of->thresholds[place / FLOATS][place % FLOATS] = threshold / query.scale;
    of->lengths[place / FLOATS][place % FLOATS] = query.length;
    of->rests[place / FLOATS][place % FLOATS] = query.rest;
}

/* Only keys whose sums are greater than these limits can have products that reach the thresholds. The slack is one
   unit of the sums for what each block has lost, one for what float32 is wrong by here, and one for rounding towards
   zero. */
static inline void set_limits(const tile *of, panel_bounds panel, shape sketch, int16_t *limits) {
    const float unit = 1.0f / (float)(1 << sketch.lost_bits), slack = (float)(sketch.blocks + 2);
    const floats least = (floats){0} + INT16_MIN, most = (floats){0} + INT16_MAX;
    for (int part = 0; part < VECTORS; part++) {
        const floats rests = of->lengths[part] * panel.rest + of->rests[part] * panel.length;
        const floats exact = (of->thresholds[part] * panel.inverse - rests) * unit - slack;
        /* what is not a number becomes the lowest limit */
        const numbers limit = __builtin_convertvector(smaller(larger(exact, least), most), numbers);
        const shorts narrow = __builtin_convertvector(limit, shorts);
        memcpy(limits + part * FLOATS, &narrow, sizeof narrow);
    }
}

static inline words load_words(const uint16_t *from) {
    words to;
    memcpy(&to, from, sizeof to);
    return to;
}

/* even key codes · even query code + odd key codes · odd query code, for LANES keys: at most 2 · 255 · 64 */
static inline words pair_products(words keys, int32_t pair) {
#if defined(__AVX512BW__)
    return (words)_mm512_maddubs_epi16((__m512i)keys, _mm512_set1_epi32(pair));
#elif defined(__AVX2__)
    return (words)_mm256_maddubs_epi16((__m256i)keys, _mm256_set1_epi32(pair));
#else
    return (keys & 0xff) * (uint16_t)(int8_t)pair + (keys >> 8) * (uint16_t)(int8_t)(pair >> 8);
#endif
}

static inline words without_bits(words sums, int bits) {
    typedef int16_t with_sign __attribute__((vector_size(2 * LANES)));
    return (words)((with_sign)sums >> bits);
}

/* One bit for each of COLS sums that is greater than a limit, as numbers with a sign. */
static inline uint64_t greater(words low, words high, int16_t limit) {
#if defined(__AVX512BW__)
    const __m512i limits = _mm512_set1_epi16(limit);
    return (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)low, limits) |
           (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)high, limits) << LANES;
#elif defined(__AVX2__)
    const __m256i limits = _mm256_set1_epi16(limit);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_cmpgt_epi16((__m256i)low, limits), _mm256_cmpgt_epi16((__m256i)high, limits));
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8));
#else
    uint64_t bits = 0;
    for (int lane = 0; lane < LANES; lane++) {
        bits |= (uint64_t)((int16_t)low[lane] > limit) << lane;
        bits |= (uint64_t)((int16_t)high[lane] > limit) << (lane + LANES);
    }
    return bits;
#endif
}

/* Sums of a tile (`pairs` and `starts` have ROWS numbers side by side) with a panel, over one block. */
static inline void multiply_block(const int32_t *pairs, const uint16_t *starts, const uint16_t *codes,
                                  int64_t num_pairs, int bits, words low[ROWS], words high[ROWS]) {
    for (int row = 0; row < ROWS; row++)
        low[row] = high[row] = starts[row] - (words){0};
    for (int64_t pair = 0; pair < num_pairs; pair++, pairs += ROWS, codes += COLS) {
        const words near = load_words(codes), far = load_words(codes + LANES);
        for (int row = 0; row < ROWS; row++) {
            low[row] += pair_products(near, pairs[row]);
            high[row] += pair_products(far, pairs[row]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        low[row] = without_bits(low[row], bits), high[row] = without_bits(high[row], bits);
}

static inline void multiply(const int32_t *pairs, const uint16_t *starts, const uint16_t *codes, shape of,
                            words low[ROWS], words high[ROWS]) {
    const int64_t all_pairs = of.width / 2;
    if (of.blocks == 1) {
        multiply_block(pairs, starts, codes, all_pairs, 0, low, high);
        return;
    }
    multiply_block(pairs, starts, codes, BLOCK / 2, of.lost_bits, low, high);
    for (int64_t block = 1; block < of.blocks; block++) {
        const int64_t first = block * BLOCK / 2, left = all_pairs - first;
        words more_low[ROWS], more_high[ROWS];
        multiply_block(pairs + first * ROWS, starts + block * ROWS, codes + first * COLS,
                       left < BLOCK / 2 ? left : BLOCK / 2, of.lost_bits, more_low, more_high);
        for (int row = 0; row < ROWS; row++)
            low[row] += more_low[row], high[row] += more_high[row];
    }
}

#endif
