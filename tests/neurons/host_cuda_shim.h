// What atmn.cu needs of CUDA, for a host: one thread after the other, and in the place
// of PTX the operations that IEEE 754 and C++ give the same bits.

#include <cmath>
#include <cstring>
#include <utility>

#define ATMN_HOST
#define __global__
#define __device__
#define __forceinline__ inline

using std::copysign;
using std::exp;
using std::fabs;
using std::fma;

struct Index {
  unsigned x, y;
};
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline float half_to_float(unsigned short bits) { return same_bits<_Float16>(bits); }
inline unsigned short float_to_half(float x) {
  return same_bits<unsigned short>(static_cast<_Float16>(x));
}

inline float add(float a, float b) { return a + b; }
inline float mul(float a, float b) { return a * b; }
inline float plus_product(float c, float a, float b) { return fma(a, b, c); }
inline float minus_product(float c, float a, float b) { return fma(-a, b, c); }
inline float reaches(float a, float b) { return fabs(a) >= b; }
inline float reciprocal(float x) { return 1 / x; }

// A letter for each parameter: p pointer, i 64-bit integer, d double
inline char letter(const void*) { return 'p'; }
inline char letter(long long) { return 'i'; }
inline char letter(double) { return 'd'; }

template <class... Parameters>
const char* letters(void (*)(Parameters...)) {
  static const char all[] = {letter(Parameters())..., 0};
  return all;
}

// As the driver does it: the addresses of the arguments, whatever stands there.
template <class... Parameters, std::size_t... I>
void launch(void (*kernel)(Parameters...), const unsigned* sizes, void** arguments,
            std::index_sequence<I...>) {
  gridDim = {sizes[0], sizes[1]};
  blockDim = {sizes[2], sizes[3]};
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
      for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x)
          kernel(*static_cast<Parameters*>(arguments[I])...);
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), const unsigned* sizes, void** arguments) {
  launch(kernel, sizes, arguments, std::index_sequence_for<Parameters...>());
}

#define EXPORT(number, ...)                                                      \
  extern "C" const char* letters_##number() { return letters(__VA_ARGS__); }      \
  extern "C" void launch_##number(const unsigned* sizes, void** arguments) {     \
    launch(__VA_ARGS__, sizes, arguments);                                       \
  }
