/* Products of a few rows x with a matrix, at the speed at which the matrix is read.
 *
 *   gather_*   W is input-major, [inputs][outputs]: the row of each input that is not
 *              zero is read once, the others never.
 *   dot_*      W is output-major, [outputs][inputs]: all of it is read.
 *
 * Weights are float, bfloat16 or int8 with a scale, made float in registers; sums are
 * float. What matters is that memory never waits. Rows that are gathered are added four
 * at a time, and those behind the next four are prefetched. A dense product reads four
 * rows at a time from four places far apart: each place is one stream for the processor
 * to follow, where rows side by side, shorter than a page, are streams that it confuses.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bfloat16.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define ROWS 4           /* added at once; with more, pointers do not fit registers */
#define AHEAD (2 * ROWS) /* from the row that is added to the one that is prefetched */
#define DOTS 4           /* outputs at once */
#define SUMS 2           /* of an output: an addition waits for the one before it */
#define LINE 64          /* bytes of a cache line */
#define LINES 16         /* from the line that is read to the one that is prefetched */

/* A register of floats. Sixteen make a line, whatever the processor. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vector __attribute__((vector_size(LANES * 4)));
typedef int32_t integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));
typedef int8_t bytes __attribute__((vector_size(LANES)));

static inline float one_f32(float w) { return w; }

static inline float one_bf16(uint16_t w) { return from_bf16(w); }

static inline float one_i8(int8_t w) { return w; }

static inline vector load_f32(const float *from)
{
    vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

/* What widens is written out where there is an instruction for it: GCC 12 takes
 * __builtin_convertvector apart, element by element. */
static inline vector load_bf16(const uint16_t *from)
{
#if defined(__AVX512F__)
    const __m256i h = _mm256_loadu_si256((const __m256i *)from);
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#elif defined(__AVX2__)
    const __m128i h = _mm_loadu_si128((const __m128i *)from);
    return (vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
#else
    halves h;
    memcpy(&h, from, sizeof h);
    return (vector)(__builtin_convertvector(h, words) << 16);
#endif
}

static inline vector load_i8(const int8_t *from)
{
#if defined(__AVX512F__)
    const __m128i b = _mm_loadu_si128((const __m128i *)from);
    return (vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
#elif defined(__AVX2__)
    const __m128i b = _mm_loadl_epi64((const __m128i *)from);
    return (vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
#else
    bytes b;
    memcpy(&b, from, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, integers), vector);
#endif
}

/* Memory for floats, which starts with a line: what straddles two is read twice. */
static float *floats(int64_t count)
{
    return aligned_alloc(LINE, (count * sizeof(float) + LINE) / LINE * LINE);
}

/* Rows of x or y are float, or bfloat16 where `narrow`; sums are float in any case. */
static float *widened(const void *x, int narrow, int64_t count)
{
    if (!narrow)
        return (float *)x;
    float *wide = floats(count);
    for (int64_t i = 0; wide && i < count; i++)
        wide[i] = one_bf16(((const uint16_t *)x)[i]);
    return wide;
}

static void narrow_to(uint16_t *y, const float *sums, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = to_bf16(sums[i]);
}

/* The inputs that are not zero in any row of x, in order; NaN is not. */
static inline __attribute__((always_inline)) int64_t
list_active(const float *x, int64_t batch, int64_t inputs, int32_t *active)
{
    int64_t count = 0, k = 0;
#ifdef __AVX512F__ /* sixteen at a time; what a store writes too much, the next covers */
    const __m512i lanes =
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; k + LANES <= inputs; k += LANES) {
        __mmask16 fires = 0;
        for (int64_t b = 0; b < batch; b++)
            fires |= _mm512_cmp_ps_mask(_mm512_loadu_ps(x + b * inputs + k),
                                        _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i here = _mm512_add_epi32(lanes, _mm512_set1_epi32((int32_t)k));
        _mm512_storeu_si512(active + count, _mm512_maskz_compress_epi32(fires, here));
        count += __builtin_popcount(fires);
    }
#endif
    for (; k < inputs; k++) {
        int fires = 0;
        for (int64_t b = 0; b < batch; b++)
            fires |= x[b * inputs + k] != 0;
        active[count] = (int32_t)k;
        count += fires;
    }
    return count;
}

/* The active inputs, and their values times their scale, input by input. Both lists are
 * filled up to a multiple of ROWS with products that add nothing. Returns how many
 * inputs are active, or -1 if more than `most`. */
static inline __attribute__((always_inline)) int64_t
compact(const float *x, int64_t batch, int64_t inputs, const float *scale, int64_t most,
        int32_t *active, float *factor)
{
    const int64_t count = list_active(x, batch, inputs, active);
    if (count > most)
        return -1;
    for (int64_t i = 0; i < count; i++)
        for (int64_t b = 0; b < batch; b++)
            factor[i * batch + b] = x[b * inputs + active[i]];
    if (scale)
        for (int64_t i = 0; i < count; i++)
            for (int64_t b = 0; b < batch; b++)
                factor[i * batch + b] *= scale[active[i]];
    for (int64_t i = count; i % ROWS; i++) {
        active[i] = active[count - 1];
        memset(factor + i * batch, 0, batch * sizeof *factor);
    }
    return count;
}

#define DEFINE(NAME, WEIGHT)                                                           \
    /* y[:, first:last] = the sum of the active rows, whole lines of them */           \
    static inline __attribute__((always_inline)) void add_##NAME(                      \
        const WEIGHT *w, int64_t outputs, const int32_t *active, const float *factor,  \
        int64_t count, int64_t batch, int64_t first, int64_t last, float *restrict y)  \
    {                                                                                  \
        const int64_t line = LINE / sizeof(WEIGHT);                                    \
        for (int64_t r = 0; r < count; r += ROWS) {                                    \
            const WEIGHT *row[ROWS], *next[ROWS];                                      \
            for (int j = 0; j < ROWS; j++) {                                           \
                const int64_t later = r + AHEAD + j, ahead = later < count ? later : r + j;\
                row[j] = w + active[r + j] * outputs;                                  \
                next[j] = w + active[ahead] * outputs;                                 \
            }                                                                          \
            for (int64_t n = first; n < last; n += line) {                             \
                for (int j = 0; j < ROWS; j++)                                         \
                    __builtin_prefetch(next[j] + n, 0, 2);                             \
                for (int64_t b = 0; b < batch; b++) {                                  \
                    const float *by = factor + r * batch + b;                          \
                    float *to = y + b * outputs + n;                                   \
                    for (int64_t lane = 0; lane < line; lane += LANES) {               \
                        vector sum;                                                    \
                        memcpy(&sum, to + lane, sizeof sum);                           \
                        for (int j = 0; j < ROWS; j++)                                 \
                            sum += by[j * batch] * load_##NAME(row[j] + n + lane);     \
                        memcpy(to + lane, &sum, sizeof sum);                           \
                    }                                                                  \
                }                                                                      \
            }                                                                          \
        }                                                                              \
    }                                                                                  \
                                                                                       \
    /* y[b] = Σ over k of x[b, k] scale[k] w[k]. Returns how many rows of w were read; \
     * -1, and y is not written, if they would be more than `most`, or for want of     \
     * memory. */                                                                      \
    int64_t gather_##NAME(const void *rows, int narrow, int64_t batch, int64_t inputs, \
                          const WEIGHT *w, int64_t outputs, const float *scale,        \
                          int64_t most, void *y, int threads)                          \
    {                                                                                  \
        float *x = widened(rows, narrow, batch * inputs);                              \
        float *sums = narrow ? floats(batch * outputs) : y;                            \
        int32_t *active = malloc((inputs + LANES) * sizeof *active);                   \
        float *factor = floats((inputs + ROWS) * batch);                               \
        int64_t count = -1;                                                            \
        if (x && sums && active && factor)                                             \
            count = batch == 1 /* a constant: it is compiled for one row */            \
                        ? compact(x, 1, inputs, scale, most, active, factor)           \
                        : compact(x, batch, inputs, scale, most, active, factor);      \
        if (count >= 0) {                                                              \
            const int64_t line = LINE / sizeof(WEIGHT), lines = outputs / line;        \
            const int64_t padded = (count + ROWS - 1) / ROWS * ROWS;                   \
            memset(sums, 0, batch * outputs * sizeof *sums);                           \
            _Pragma("omp parallel for num_threads(threads) schedule(static)")          \
            for (int t = 0; t < threads; t++) {                                        \
                const int64_t first = lines * t / threads * line;                      \
                const int64_t last = lines * (t + 1) / threads * line;                 \
                if (batch == 1) /* the same: the factors stay in registers */          \
                    add_##NAME(w, outputs, active, factor, padded, 1, first, last,     \
                               sums);                                                  \
                else                                                                   \
                    add_##NAME(w, outputs, active, factor, padded, batch, first, last, \
                               sums);                                                  \
            }                                                                          \
            for (int64_t i = 0; i < count; i++)                                        \
                for (int64_t b = 0; b < batch; b++)                                    \
                    for (int64_t n = lines * line; n < outputs; n++)                   \
                        sums[b * outputs + n] += factor[i * batch + b] *               \
                                                 one_##NAME(w[active[i] * outputs + n]);\
            if (narrow)                                                                \
                narrow_to(y, sums, batch * outputs);                                   \
        }                                                                              \
        if (narrow) {                                                                  \
            free(x);                                                                   \
            free(sums);                                                                \
        }                                                                              \
        free(active);                                                                  \
        free(factor);                                                                  \
        return count;                                                                  \
    }                                                                                  \
                                                                                       \
    /* y[n] = scale[n] Σ over k of x[k] w[n, k], for `count` outputs n, first and so far\
     * apart, which share a read of x. */                                              \
    static inline __attribute__((always_inline)) void dots_##NAME(                     \
        const float *x, int64_t inputs, const WEIGHT *w, const float *scale, float *y, \
        int64_t first, int64_t apart, int64_t count)                                   \
    {                                                                                  \
        const int64_t line = LINE / sizeof(WEIGHT);                                    \
        const WEIGHT *row = w + first * inputs;                                        \
        vector sums[DOTS][SUMS] = {0};                                                 \
        int64_t k = 0;                                                                 \
        for (; k + line <= inputs; k += line) {                                        \
            for (int64_t i = 0; i < count; i++)                                        \
                __builtin_prefetch(row + i * apart * inputs + k + LINES * line, 0, 2); \
            _Pragma("GCC unroll 16")                                                   \
            for (int64_t lane = 0; lane < line; lane += LANES) {                       \
                const vector from = load_f32(x + k + lane);                            \
                for (int64_t i = 0; i < count; i++)                                    \
                    sums[i][lane / LANES % SUMS] +=                                    \
                        from * load_##NAME(row + i * apart * inputs + k + lane);       \
            }                                                                          \
        }                                                                              \
        for (int64_t i = 0; i < count; i++) {                                          \
            const int64_t n = first + i * apart;                                       \
            const vector both = sums[i][0] + sums[i][1];                               \
            float sum = 0;                                                             \
            for (int lane = 0; lane < LANES; lane++)                                   \
                sum += both[lane];                                                     \
            for (int64_t rest = k; rest < inputs; rest++)                              \
                sum += x[rest] * one_##NAME(w[n * inputs + rest]);                     \
            y[n] = scale ? sum * scale[n] : sum;                                       \
        }                                                                              \
    }                                                                                  \
                                                                                       \
    /* y[b, n] = scale[n] Σ over k of x[b, k] w[n, k]. Returns how many rows of w were \
     * read: all; -1 for want of memory. */                                            \
    int64_t dot_##NAME(const void *rows, int narrow, int64_t batch, int64_t inputs,    \
                       const WEIGHT *w, int64_t outputs, const float *scale, void *y,  \
                       int threads)                                                    \
    {                                                                                  \
        float *x = widened(rows, narrow, batch * inputs);                              \
        float *sums = narrow ? floats(batch * outputs) : y;                            \
        const int able = x && sums;                                                    \
        if (able) {                                                                    \
            _Pragma("omp parallel for num_threads(threads) schedule(static)")          \
            for (int t = 0; t < threads; t++) {                                        \
                const int64_t first = outputs * t / threads;                           \
                const int64_t last = outputs * (t + 1) / threads;                      \
                const int64_t apart = (last - first) / DOTS;                           \
                for (int64_t n = first; n < first + apart; n++)                        \
                    for (int64_t b = 0; b < batch; b++)                                \
                        dots_##NAME(x + b * inputs, inputs, w, scale,                  \
                                    sums + b * outputs, n, apart, DOTS);               \
                for (int64_t n = first + DOTS * apart; n < last; n++)                  \
                    for (int64_t b = 0; b < batch; b++)                                \
                        dots_##NAME(x + b * inputs, inputs, w, scale,                  \
                                    sums + b * outputs, n, 0, 1);                      \
            }                                                                          \
            if (narrow)                                                                \
                narrow_to(y, sums, batch * outputs);                                   \
        }                                                                              \
        if (narrow) {                                                                  \
            free(x);                                                                   \
            free(sums);                                                                \
        }                                                                              \
        return able ? outputs : -1;                                                    \
    }

DEFINE(f32, float)
DEFINE(bf16, uint16_t)
DEFINE(i8, int8_t)
