/* Reads memory and does nothing else: what a product of these bytes can be as fast as. */
#include <stdint.h>
#include <string.h>

#define STREAMS 4 /* as many as a dense product has */

typedef uint64_t vector __attribute__((vector_size(32)));

/* The sum of a stretch's numbers, which the compiler cannot leave out. */
static uint64_t read_streams(const char *from, int64_t bytes)
{
    const int64_t each = bytes / STREAMS / sizeof(vector) * sizeof(vector);
    vector sums[STREAMS] = {0};
    for (int64_t i = 0; i < each; i += sizeof(vector))
        for (int s = 0; s < STREAMS; s++) {
            vector v;
            memcpy(&v, from + s * each + i, sizeof v);
            sums[s] += v;
        }
    const vector sum = sums[0] + sums[1] + sums[2] + sums[3];
    return sum[0] + sum[1] + sum[2] + sum[3];
}

uint64_t read_all(const char *from, int64_t bytes, int threads)
{
    uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
    for (int t = 0; t < threads; t++) {
        const int64_t first = bytes * t / threads;
        sum += read_streams(from + first, bytes * (t + 1) / threads - first);
    }
    return sum;
}
