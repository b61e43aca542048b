/* The coder of `reference.atmn_code`, a block of channels at a time and in the cache.
 *
 * The arithmetic is the reference's, operation by operation, so the codes are the same
 * bits: a product with a spike is exact, and -ffp-contract=off keeps the others apart.
 * The membranes of bfloat16 values are float.
 */
#include "bfloat16.h"

#define BLOCK 256

#define SAME(value) (value)

#define DEFINE_CODE(NAME, VALUE, REAL, WIDE, NARROW)                                   \
    void NAME(const VALUE *x, const REAL *v_threshold, int64_t rows, int64_t channels, \
              const REAL *weights, int64_t steps, REAL decay, REAL fire_ratio,         \
              VALUE *code)                                                             \
    {                                                                                  \
        for (int64_t row = 0; row < rows; row++)                                       \
            for (int64_t first = 0; first < channels; first += BLOCK) {                \
                const int64_t rest = channels - first;                                 \
                const int64_t n = rest < BLOCK ? rest : BLOCK;                         \
                const REAL *restrict v = v_threshold + first;                          \
                const VALUE *restrict from = x + row * channels + first;               \
                VALUE *restrict to = code + row * channels + first;                    \
                REAL h[BLOCK], spike[BLOCK], value[BLOCK];                             \
                for (int64_t c = 0; c < n; c++)                                        \
                    h[c] = WIDE(from[c]), value[c] = 0;                                \
                for (int64_t t = 0; t < steps; t++)                                    \
                    for (int64_t c = 0; c < n; c++) {                                  \
                        if (t > 0)                                                     \
                            h[c] = (h[c] - spike[c] * v[c]) * decay;                   \
                        const REAL fire = fire_ratio * v[c];                           \
                        spike[c] = (h[c] >= fire ? (REAL)1 : 0) -                      \
                                   (h[c] <= -fire ? (REAL)1 : 0);                      \
                        value[c] += weights[t] * spike[c];                             \
                    }                                                                  \
                for (int64_t c = 0; c < n; c++)                                        \
                    to[c] = NARROW(value[c] * v[c]);                                   \
            }                                                                          \
    }

DEFINE_CODE(code_f32, float, float, SAME, SAME)
DEFINE_CODE(code_f64, double, double, SAME, SAME)
DEFINE_CODE(code_bf16, uint16_t, float, from_bf16, to_bf16)
