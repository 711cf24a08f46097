// SPDX-License-Identifier: Apache-2.0
/* Asks what the processor can do in bfloat16. LONGMEM_BF16: products of vectors. LONGMEM_AMX: products of tiles, too. */

#ifndef LONGMEM_BFLOAT16_SET_H
#define LONGMEM_BFLOAT16_SET_H

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define LONGMEM_BF16
#endif

/* tiles_are_allowed asks Linux for them */
#if defined(LONGMEM_BF16) && defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__x86_64__) && defined(__linux__)
#define LONGMEM_AMX
#endif

#endif
