/* Upper bounds of inner products from whole numbers of eight bits.

   For a query a and a key b, coded as scale · (codes + rest) each (`codes.h`),

       a · b  =  s_a s_b (A · B  +  A · rest_b  +  rest_a · b / s_b)
             ≤  s_a s_b (A · B  +  |A| |rest_b|  +  |rest_a| |b| / s_b),

   and A · B is exact: four times as many terms in an instruction as in float32. Where sums have sixteen bits, that of a
   block fits, whatever wraps around on the way. Longer vectors are several blocks, whose sums lose a few low bits
   before they are added. */

#ifndef LONGMEM_BOUNDS_H
#define LONGMEM_BOUNDS_H

#include "codes.h"

/* What the bounds of queries need beside their sums, thresholds in units of their scales, and what follows from it for
   one panel. Room for whole tiles and whole vectors. */
typedef struct {
    float *thresholds, *lengths, *rests;
    signed_word *limits;
} query_limits;

static inline void set_query(query_limits of, int64_t slot, query_bounds query, float threshold) {
    of.thresholds[slot] = threshold / query.scale;
    of.lengths[slot] = query.length;
    of.rests[slot] = query.rest;
}

/* Only keys whose sums are greater than these limits can have products that reach the thresholds. The slack is one
   unit of the sums for 64 columns, which is what the block of them has lost or what float32 is wrong by in numbers as
   large as sums of so many products can be, one for what it is wrong by in small ones, and one for rounding towards
   zero. */
static inline void set_limits(query_limits of, int64_t num_slots, panel_bounds panel, shape sketch) {
    const float unit = 1.0f / (float)(1 << sketch.lost_bits), slack = (float)((sketch.width + 63) / 64 + 2);
    const floats least = (floats){0} + LEAST_LIMIT, most = (floats){0} + MOST_LIMIT;
    for (int64_t slot = 0; slot < num_slots; slot += FLOATS) {
        const floats rests = load(of.lengths + slot) * panel.rest + load(of.rests + slot) * panel.length;
        const floats exact = (load(of.thresholds + slot) * panel.inverse - rests) * unit - slack;
        /* what is not a number becomes the lowest limit */
        const numbers limit = __builtin_convertvector(smaller(larger(exact, least), most), numbers);
        const slot_limits narrow = __builtin_convertvector(limit, slot_limits);
        memcpy(of.limits + slot, &narrow, sizeof narrow);
    }
}

static inline words load_words(const uint8_t *from) {
    words to;
    memcpy(&to, from, sizeof to);
    return to;
}

/* sums + key codes · query codes of one group, for LANES keys */
static inline words add_products(words sums, words keys, int32_t group) {
#if defined(LONGMEM_VNNI)
    return (words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)keys, _mm512_set1_epi32(group));
#elif defined(__AVX512BW__)
    return sums + (words)_mm512_maddubs_epi16((__m512i)keys, _mm512_set1_epi32(group));
#elif defined(__AVX2__)
    return sums + (words)_mm256_maddubs_epi16((__m256i)keys, _mm256_set1_epi32(group));
#else
    return sums + (keys & 0xff) * (uint16_t)(int8_t)group + (keys >> 8) * (uint16_t)(int8_t)(group >> 8);
#endif
}

static inline words without_bits(words sums, int bits) { return (words)((signed_words)sums >> bits); }

/* sums · factor, a factor from 0 to 1 */
static inline words scaled(words sums, float factor) {
#if defined(LONGMEM_VNNI)
    const __m512 wide = _mm512_cvtepi32_ps((__m512i)sums);
    return (words)_mm512_cvtps_epi32(_mm512_mul_ps(wide, _mm512_set1_ps(factor)));
#elif defined(__AVX512BW__)
    return (words)_mm512_mulhrs_epi16((__m512i)sums, _mm512_set1_epi16((int16_t)(factor * INT16_MAX)));
#elif defined(__AVX2__)
    return (words)_mm256_mulhrs_epi16((__m256i)sums, _mm256_set1_epi16((int16_t)(factor * INT16_MAX)));
#else
    words to;
    for (int lane = 0; lane < LANES; lane++)
        to[lane] = (uint16_t)(((int16_t)sums[lane] * (int16_t)(factor * INT16_MAX) + (1 << 14)) >> 15);
    return to;
#endif
}

/* One bit for each of COLS sums that is greater than a limit, as numbers with a sign. */
static inline uint64_t greater(const words sums[PARTS], signed_word limit) {
#if defined(LONGMEM_VNNI)
    const __m512i limits = _mm512_set1_epi32(limit);
    uint64_t bits = 0;
    for (int part = 0; part < PARTS; part++)
        bits |= (uint64_t)_mm512_cmpgt_epi32_mask((__m512i)sums[part], limits) << part * LANES;
    return bits;
#elif defined(__AVX512BW__)
    const __m512i limits = _mm512_set1_epi16(limit);
    return (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)sums[0], limits) |
           (uint64_t)_mm512_cmpgt_epi16_mask((__m512i)sums[1], limits) << LANES;
#elif defined(__AVX2__)
    const __m256i limits = _mm256_set1_epi16(limit);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_cmpgt_epi16((__m256i)sums[0], limits), _mm256_cmpgt_epi16((__m256i)sums[1], limits));
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8));
#else
    uint64_t bits = 0;
    for (int col = 0; col < COLS; col++)
        bits |= (uint64_t)((signed_word)sums[col / LANES][col % LANES] > limit) << col;
    return bits;
#endif
}

/* A tile: the codes of ROWS queries, side by side. */
typedef struct {
    const int32_t *groups;
    const word *starts;
} tile;

/* Sums of a tile with a panel, over one block. */
static inline __attribute__((always_inline)) void multiply_block(tile with, const uint8_t *codes, int64_t num_groups,
                                                                 int bits, words sums[ROWS][PARTS]) {
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++)
            sums[row][part] = with.starts[row] - (words){0};
    /* there is at least one, and the compiler had better know: it keeps the sums in registers all the time then */
    do {
        words keys[PARTS];
        for (int part = 0; part < PARTS; part++)
            keys[part] = load_words(codes + part * sizeof(words));
        for (int row = 0; row < ROWS; row++)
            for (int part = 0; part < PARTS; part++)
                sums[row][part] = add_products(sums[row][part], keys[part], with.groups[row]);
        with.groups += ROWS, codes += COLS * GROUP;
    } while (--num_groups);
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++)
            sums[row][part] = (words)((signed_words)sums[row][part] >> bits);
}

/* Over several blocks. */
static inline __attribute__((always_inline)) void multiply_blocks(tile with, const uint8_t *codes, shape of,
                                                                  words sums[ROWS][PARTS]) {
    const int64_t all_groups = of.width / GROUP;
    multiply_block(with, codes, BLOCK / GROUP, of.lost_bits, sums);
    for (int64_t block = 1; block < of.blocks; block++) {
        const int64_t first = block * BLOCK / GROUP, left = all_groups - first;
        words more[ROWS][PARTS];
        multiply_block((tile){with.groups + first * ROWS, with.starts + block * ROWS}, codes + first * COLS * GROUP,
                       left < BLOCK / GROUP ? left : BLOCK / GROUP, of.lost_bits, more);
        for (int row = 0; row < ROWS; row++)
            for (int part = 0; part < PARTS; part++)
                sums[row][part] += more[row][part];
    }
}

static inline __attribute__((always_inline)) void compare_each(const words sums[ROWS][PARTS],
                                                               const signed_word *limits, uint64_t present,
                                                               uint64_t passing[ROWS]) {
    for (int row = 0; row < ROWS; row++)
        passing[row] = greater(sums[row], limits[row]) & present;
}

/* Which of the present keys of a panel pass the limits of each query. Not to be merged into its callers, because the
   sums need all registers there are; nor the two kinds of sums into one, because they would pass through memory. */
static __attribute__((noinline)) void compare_tile(tile with, const uint8_t *codes, shape of,
                                                   const signed_word *limits, uint64_t present,
                                                   uint64_t passing[ROWS]) {
    words sums[ROWS][PARTS];
    if (of.blocks == 1) {
        multiply_block(with, codes, of.width / GROUP, 0, sums);
        compare_each(sums, limits, present, passing);
    } else {
        multiply_blocks(with, codes, of, sums);
        compare_each(sums, limits, present, passing);
    }
}

/* The largest sum that each query has met in each column, times `factor`, and the number of its panel. */
typedef struct {
    words sums[PARTS], numbers[PARTS];
} maxima;

static inline __attribute__((always_inline)) void raise_each(const words sums[ROWS][PARTS], float factor, word number,
                                                             maxima best[ROWS]) {
    for (int row = 0; row < ROWS; row++)
        for (int part = 0; part < PARTS; part++) {
            const words found = scaled(sums[row][part], factor), before = best[row].sums[part];
            const words first = (words)((signed_words)found > (signed_words)before);
            best[row].sums[part] = (found & first) | (before & ~first);
            best[row].numbers[part] = (number & first) | (best[row].numbers[part] & ~first);
        }
}

static __attribute__((noinline)) void raise_maxima(tile with, const uint8_t *codes, shape of, float factor,
                                                   word number, maxima best[ROWS]) {
    words sums[ROWS][PARTS];
    if (of.blocks == 1) {
        multiply_block(with, codes, of.width / GROUP, 0, sums);
        raise_each(sums, factor, number, best);
    } else {
        multiply_blocks(with, codes, of, sums);
        raise_each(sums, factor, number, best);
    }
}

#endif
