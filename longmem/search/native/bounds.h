/* Upper bounds of inner products from whole numbers of eight bits.

   For a query a and a key b, coded as scale · (codes + rest) each (`codes.h`),

       a · b  =  s_a s_b (A · B  +  A · rest_b  +  rest_a · b / s_b)
             ≤  s_a s_b (A · B  +  |A| |rest_b|  +  |rest_a| |b| / s_b),

   and A · B is exact. It is summed in sixteen bits, four times as many terms in an instruction as in float32; the sum
   of a block fits, whatever wraps around on the way. Longer vectors are several blocks, whose sums lose a few low bits
   before they are added. */

#ifndef LONGMEM_BOUNDS_H
#define LONGMEM_BOUNDS_H

#include "codes.h"

/* What the bounds of queries need beside their sums, thresholds in units of their scales, and what follows from it for
   one panel. Room for whole tiles and whole vectors. */
typedef struct {
    float *thresholds, *lengths, *rests;
    int16_t *limits;
} query_limits;

static inline void set_query(query_limits of, int64_t slot, query_bounds query, float threshold) {
    of.thresholds[slot] = threshold / query.scale;
    of.lengths[slot] = query.length;
    of.rests[slot] = query.rest;
}

/* Only keys whose sums are greater than these limits can have products that reach the thresholds. The slack is one
   unit of the sums for what each block has lost, one for what float32 is wrong by here, and one for rounding towards
   zero. */
static inline void set_limits(query_limits of, int64_t num_slots, panel_bounds panel, shape sketch) {
    const float unit = 1.0f / (float)(1 << sketch.lost_bits), slack = (float)(sketch.blocks + 2);
    const floats least = (floats){0} + INT16_MIN, most = (floats){0} + INT16_MAX;
    for (int64_t slot = 0; slot < num_slots; slot += FLOATS) {
        const floats rests = load(of.lengths + slot) * panel.rest + load(of.rests + slot) * panel.length;
        const floats exact = (load(of.thresholds + slot) * panel.inverse - rests) * unit - slack;
        /* what is not a number becomes the lowest limit */
        const numbers limit = __builtin_convertvector(smaller(larger(exact, least), most), numbers);
        const shorts narrow = __builtin_convertvector(limit, shorts);
        memcpy(of.limits + slot, &narrow, sizeof narrow);
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

static inline words without_bits(words sums, int bits) { return (words)((signed_words)sums >> bits); }

/* sums · factor / 2^15, for numbers with a sign */
static inline words scaled(words sums, int16_t factor) {
#if defined(__AVX512BW__)
    return (words)_mm512_mulhrs_epi16((__m512i)sums, _mm512_set1_epi16(factor));
#elif defined(__AVX2__)
    return (words)_mm256_mulhrs_epi16((__m256i)sums, _mm256_set1_epi16(factor));
#else
    words to;
    for (int lane = 0; lane < LANES; lane++)
        to[lane] = (uint16_t)(((int16_t)sums[lane] * factor + (1 << 14)) >> 15);
    return to;
#endif
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

/* A tile: the codes of ROWS queries, side by side. */
typedef struct {
    const int32_t *pairs;
    const uint16_t *starts;
} tile;

/* Sums of a tile with a panel, over one block. */
static inline __attribute__((always_inline)) void multiply_block(tile with, const uint16_t *codes, int64_t num_pairs,
                                                                 int bits, words low[ROWS], words high[ROWS]) {
    for (int row = 0; row < ROWS; row++)
        low[row] = high[row] = with.starts[row] - (words){0};
    for (int64_t pair = 0; pair < num_pairs; pair++, with.pairs += ROWS, codes += COLS) {
        const words near = load_words(codes), far = load_words(codes + LANES);
        for (int row = 0; row < ROWS; row++) {
            low[row] += pair_products(near, with.pairs[row]);
            high[row] += pair_products(far, with.pairs[row]);
        }
    }
    for (int row = 0; row < ROWS; row++)
        low[row] = without_bits(low[row], bits), high[row] = without_bits(high[row], bits);
}

static inline __attribute__((always_inline)) void multiply(tile with, const uint16_t *codes, shape of,
                                                           words low[ROWS], words high[ROWS]) {
    const int64_t all_pairs = of.width / 2;
    if (of.blocks == 1) {
        multiply_block(with, codes, all_pairs, 0, low, high);
        return;
    }
    multiply_block(with, codes, BLOCK / 2, of.lost_bits, low, high);
    for (int64_t block = 1; block < of.blocks; block++) {
        const int64_t first = block * BLOCK / 2, left = all_pairs - first;
        words more_low[ROWS], more_high[ROWS];
        multiply_block((tile){with.pairs + first * ROWS, with.starts + block * ROWS}, codes + first * COLS,
                       left < BLOCK / 2 ? left : BLOCK / 2, of.lost_bits, more_low, more_high);
        for (int row = 0; row < ROWS; row++)
            low[row] += more_low[row], high[row] += more_high[row];
    }
}

/* Which of the present keys of a panel pass the limits of each query. Not to be merged into its callers, because the
   sums need all registers there are. */
static __attribute__((noinline)) void compare_tile(tile with, const uint16_t *codes, shape of, const int16_t *limits,
                                                   uint64_t present, uint64_t passing[ROWS]) {
    words low[ROWS], high[ROWS];
    multiply(with, codes, of, low, high);
    for (int row = 0; row < ROWS; row++)
        passing[row] = greater(low[row], high[row], limits[row]) & present;
}

/* The largest sum that each query has met in each column, in units of `factor`, and the number of its panel. */
typedef struct {
    words sums[2], numbers[2];
} maxima;

static __attribute__((noinline)) void raise_maxima(tile with, const uint16_t *codes, shape of, int16_t factor,
                                                   uint16_t number, maxima best[ROWS]) {
    words both[2][ROWS];
    multiply(with, codes, of, both[0], both[1]);
    for (int row = 0; row < ROWS; row++)
        for (int half = 0; half < 2; half++) {
            const words found = scaled(both[half][row], factor), before = best[row].sums[half];
            const words first = (words)((signed_words)found > (signed_words)before);
            best[row].sums[half] = (found & first) | (before & ~first);
            best[row].numbers[half] = (number & first) | (best[row].numbers[half] & ~first);
        }
}

#endif
