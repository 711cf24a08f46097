// SPDX-License-Identifier: Apache-2.0
/* The only place that asks what the processor can do. It includes one file of each kind below.

   A file `floats_*.h` defines:
   - larger(a, b), smaller(a, b): the greater or lesser value in each lane; b where one of them is NaN.
   - widen_float16s(source): FLOAT_LANES float16 numbers as float32.

   A file `int8_dot_*.h` defines the types sum_t, signed_sum_t, sum_vector and signed_sum_vector (SUM_LANES sums, whose
   overflow wraps around in the unsigned ones), the limits of `quantise.h`, and:
   - GROUP: values of a vector whose products an instruction adds to a sum.
   - PANEL_VECTORS vectors of sums are the keys of a panel, and TILE_QUERIES queries a tile: all sums of a tile with a
     panel stay in registers.
   - add_products(sums, keys, group): sums + unsigned key values · signed query values of one group, for SUM_LANES keys.
   - scale_sums(sums, factor): sums · factor, rounded; 0 <= factor <= 1.
   - mask_greater(sums, limit): a bit for each key of a panel, set where its sum is greater than the limit.
   - repeat_group(group): the values of a group, repeated until they fill 32 bits.
   - interleave_keys(biased, values, stride): the lowest byte of each of FLOAT_LANES numbers of four keys; GROUP columns
     of the four keys go next to each other, and the next group goes `stride` bytes further. */

#ifndef LONGMEM_INSTRUCTION_SET_H
#define LONGMEM_INSTRUCTION_SET_H

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "groups of quantised values are packed for little-endian processors"
#endif

#if defined(__F16C__)
#include "floats_f16c.h"
#else
#include "floats_generic.h"
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "int8_dot_vnni.h"
#elif defined(__AVX512BW__)
#include "int8_dot_avx512.h"
#elif defined(__AVX2__)
#include "int8_dot_avx2.h"
#else
#include "int8_dot_generic.h"
#endif

enum { PANEL_KEYS = PANEL_VECTORS * SUM_LANES };

#endif
