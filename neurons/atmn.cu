// The kernels of the ATMN neuron for NVIDIA GPUs. The equations stand in reference.py,
// what each kernel is given and has to fill in backends.py (Kernels).
//
// T time steps · K kept membranes, the last of T · N neurons · R rows · C channels
// x input · h membrane when charged · v membrane after the reset · s spike -1, 0, 1
// V threshold · rho fire ratio · decay 1 / tau · w weight of a step · u = x / V
//
// A thread owns `width` neighbours from the first step to the last, in registers, and
// reads and writes them at once: 16 bytes of the widest dtype, where the caller found
// all of it aligned. No thread waits for another one. A sequence is a pointer and the
// distance of two of its rows, in elements.

using int64 = long long;

#define DEVICE __device__ __forceinline__

// ---- what a host does differently: tests compile this file with their own versions

#ifndef ATMN_HOST

// PTX and no operators where bits count: CuPy compiles with -ftz=true, whatever it is
// told (cupy issue 9576), and operators would flush subnormal membranes to zero.
DEVICE float add(float a, float b) {
  asm("add.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}
DEVICE float mul(float a, float b) {
  asm("mul.rn.f32 %0, %0, %1;" : "+f"(a) : "f"(b));
  return a;
}
// c + a b and c - a b, rounded once
DEVICE float plus_product(float c, float a, float b) {
  asm("fma.rn.f32 %0, %1, %2, %0;" : "+f"(c) : "f"(a), "f"(b));
  return c;
}
DEVICE float minus_product(float c, float a, float b) {
  asm("{ .reg .f32 m; neg.f32 m, %1; fma.rn.f32 %0, m, %2, %0; }"
      : "+f"(c) : "f"(a), "f"(b));
  return c;
}
// 1 where |a| >= b, else 0, also for NaN
DEVICE float reaches(float a, float b) {
  asm("{ .reg .f32 m; abs.f32 m, %0; set.ge.f32.f32 %0, m, %1; }" : "+f"(a) : "f"(b));
  return a;
}
// but for the last bit, which is enough for gradients, and a fifth of the instructions
DEVICE float reciprocal(float x) {
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
}
DEVICE float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
DEVICE unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

#endif

DEVICE double add(double a, double b) { return a + b; }
DEVICE double mul(double a, double b) { return a * b; }
DEVICE double plus_product(double c, double a, double b) { return fma(a, b, c); }
DEVICE double minus_product(double c, double a, double b) { return fma(-a, b, c); }
DEVICE double reaches(double a, double b) { return fabs(a) >= b; }
DEVICE double reciprocal(double x) { return 1 / x; }

// ---- dtypes: what stands in memory (Scalar), and what is computed with (Membrane)

struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

template <class Scalar> struct MembraneOf { using type = float; };
template <> struct MembraneOf<double> { using type = double; };
template <class Scalar>
using Membrane = typename MembraneOf<Scalar>::type;

DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(Half x) { return half_to_float(x.bits); }
DEVICE float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

DEVICE void round_to(float x, float& rounded) { rounded = x; }
DEVICE void round_to(double x, double& rounded) { rounded = x; }
DEVICE void round_to(float x, Half& rounded) { rounded.bits = float_to_half(x); }
DEVICE void round_to(float x, BFloat16& rounded) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
#else
  // to nearest, ties to even; a NaN must not be carried over into an infinity
  const unsigned bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  rounded.bits = is_nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}

// ---- memory: `width` neighbours at a time

template <class Scalar, int width>
struct alignas(sizeof(Scalar) * width < 16 ? sizeof(Scalar) * width : 16) Pack {
  Scalar lanes[width];
};

template <int width, class Scalar>
DEVICE void read(const Scalar* from, Membrane<Scalar> (&to)[width]) {
  const auto pack = *reinterpret_cast<const Pack<Scalar, width>*>(from);
#pragma unroll
  for (int i = 0; i < width; ++i) to[i] = widen(pack.lanes[i]);
}

template <int width, class Scalar>
DEVICE void write(Scalar* to, const Membrane<Scalar> (&from)[width]) {
  Pack<Scalar, width> pack;
#pragma unroll
  for (int i = 0; i < width; ++i) round_to(from[i], pack.lanes[i]);
  *reinterpret_cast<Pack<Scalar, width>*>(to) = pack;
}

// V and rho V of `width` neighbours from neuron n on: n has threshold n / inner % C
template <class M, int width>
struct Thresholds {
  M V[width], rho_V[width];

  DEVICE Thresholds(const M* v_threshold, int64 C, int64 inner, int64 n, double rho) {
    int64 c = n / inner % C;
    int64 left = inner - n % inner;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      V[i] = v_threshold[c];
      rho_V[i] = mul(M(rho), V[i]);
      if (--left == 0) {
        left = inner;
        c = c + 1 < C ? c + 1 : 0;
      }
    }
  }
};

// ---- the derivatives of SpikingJelly's surrogates at x, whose width alpha sets

struct Sigmoid {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M s = reciprocal(1 + exp(alpha * fabs(x)));
    return alpha * s * (1 - s);
  }
};
struct ATan {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M y = M(1.5707963267948966) * alpha * x;
    return alpha / 2 * reciprocal(plus_product(M(1), y, y));
  }
};
struct PiecewiseQuadratic {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M y = alpha - alpha * alpha * fabs(x);
    return y < 0 ? M(0) : y;
  }
};
struct PiecewiseExp {
  template <class M> static DEVICE M slope(M x, M alpha) {
    return alpha / 2 * exp(-alpha * fabs(x));
  }
};
struct SoftSign {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M y = 1 / alpha + fabs(x);
    return reciprocal(2 * alpha * y * y);
  }
};
struct SuperSpike {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M y = 1 + fabs(x);
    return alpha * reciprocal(y * y);
  }
};
struct Erf {
  template <class M> static DEVICE M slope(M x, M alpha) {
    const M y = alpha * x;
    return alpha * M(0.5641895835477563) * exp(-y * y);
  }
};
// for codes only, see Coding::differentiate
struct Straight {};

// ---- the neuron

// The sign of h where |h| reaches rho V > 0. Where it does not, a zero with that sign.
template <class M>
DEVICE M fire(M h, M rho_V) {
  return copysign(reaches(h, rho_V), h);
}

// h - s V. The product is exact, so rounding once gives the bits of rounding twice.
template <class M>
DEVICE M spend(M h, M s, M V) {
  return minus_product(h, s, V);
}

template <int width>
DEVICE int64 first_neighbour() {
  return (int64(blockIdx.x) * blockDim.x + threadIdx.x) * width;
}

template <class Scalar, int width, class M = Membrane<Scalar>>
__global__ void multi_step(
    const Scalar* __restrict__ x_seq, int64 x_row, const M* __restrict__ v_first,
    const M* __restrict__ v_threshold, int64 C, int64 inner,
    Scalar* __restrict__ spike_seq, int64 spike_row, M* __restrict__ v_seq,
    int64 v_row, M* __restrict__ h_seq, int64 h_row, int64 T, int64 K, int64 N,
    double decay, double rho) {
  const int64 n = first_neighbour<width>();
  if (n >= N) return;
  const Thresholds<M, width> at(v_threshold, C, inner, n, rho);
  M v[width];
  read(v_first + n, v);
#pragma unroll 4
  for (int64 t = 0; t < T; ++t) {
    M x[width], h[width], s[width];
    read(x_seq + t * x_row + n, x);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      h[i] = add(mul(v[i], M(decay)), x[i]);
      // plus zero: no negative zeros in memory
      s[i] = add(fire(h[i], at.rho_V[i]), M(0));
      v[i] = spend(h[i], s[i], at.V[i]);
    }
    write(spike_seq + t * spike_row + n, s);
    if (h_seq) write(h_seq + t * h_row + n, h);
    if (t >= T - K) write(v_seq + (t - (T - K)) * v_row + n, v);
  }
}

template <class Scalar, class Surrogate, int width, class M = Membrane<Scalar>>
__global__ void multi_step_backward(
    const Scalar* __restrict__ grad_spike_seq, int64 grad_spike_row,
    const M* __restrict__ grad_v_seq, int64 grad_v_row, const M* __restrict__ h_seq,
    int64 h_row, const M* __restrict__ v_threshold, int64 C, int64 inner,
    Scalar* __restrict__ grad_x_seq, int64 grad_x_row, M* __restrict__ grad_v_first,
    M* __restrict__ grad_threshold, int64 T, int64 K, int64 N, double decay, double rho,
    double alpha, int64 detach_reset) {
  const int64 n = first_neighbour<width>();
  if (n >= N) return;
  const Thresholds<M, width> at(v_threshold, C, inner, n, rho);
  M of_V[width] = {}, of_v[width] = {};
#pragma unroll 1
  for (int64 t = T - 1; t >= 0; --t) {
    M h[width], of_spike[width], of_kept[width] = {};
    read(h_seq + t * h_row + n, h);
    read(grad_spike_seq + t * grad_spike_row + n, of_spike);
    if (t >= T - K) read(grad_v_seq + (t - (T - K)) * grad_v_row + n, of_kept);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      of_v[i] += of_kept[i];
      const M of_s = of_spike[i] - (detach_reset ? M(0) : of_v[i] * at.V[i]);
      const M up = of_s * Surrogate::slope(h[i] - at.rho_V[i], M(alpha));
      const M down = of_s * Surrogate::slope(-h[i] - at.rho_V[i], M(alpha));
      of_V[i] += M(rho) * (down - up) - of_v[i] * fire(h[i], at.rho_V[i]);
      of_v[i] += up + down;
    }
    write(grad_x_seq + t * grad_x_row + n, of_v);
#pragma unroll
    for (int i = 0; i < width; ++i) of_v[i] *= M(decay);
  }
  write(grad_v_first + n, of_v);
  write(grad_threshold + n, of_V);
}

// ---- the code: a thread keeps its channels and walks down the rows

template <class M, int width>
struct Coding {
  const Thresholds<M, width>& at;
  const M* weights;
  int T;
  M decay;
  // of the gradient alone
  M rho = 0, saturation = 0, alpha = 0;
  bool detach_reset = false;

  // f(u) = sum_t w[t] s[t]
  DEVICE void encode(const M (&x)[width], M (&value)[width]) const {
    M h[width];
#pragma unroll
    for (int i = 0; i < width; ++i) h[i] = x[i], value[i] = 0;
    for (int t = 0; t < T; ++t) {
      const M w = weights[t];
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const M s = fire(h[i], at.rho_V[i]);
        value[i] = plus_product(value[i], w, s);
        h[i] = mul(spend(h[i], s, at.V[i]), decay);
      }
    }
  }

  // f(u) and f'(u), straight through: 1 as far as the code reaches, 0 beyond
  DEVICE void differentiate(
      Straight, const M (&x)[width], M (&value)[width], M (&slope)[width]) const {
    encode(x, value);
#pragma unroll
    for (int i = 0; i < width; ++i) slope[i] = fabs(x[i]) <= mul(saturation, at.V[i]);
  }

  // f(u) and f'(u), the derivative carried forward beside the membrane
  template <class Surrogate>
  DEVICE void differentiate(
      Surrogate, const M (&x)[width], M (&value)[width], M (&slope)[width]) const {
    M h[width], h_slope[width];
#pragma unroll
    for (int i = 0; i < width; ++i)
      h[i] = x[i], h_slope[i] = 1, value[i] = slope[i] = 0;
#pragma unroll 1
    for (int t = 0; t < T; ++t) {
      const M w = weights[t];
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const M s = fire(h[i], at.rho_V[i]), u = h[i] * reciprocal(at.V[i]);
        const M s_slope = h_slope[i] * (Surrogate::slope(u - rho, alpha) +
                                        Surrogate::slope(-u - rho, alpha));
        value[i] = plus_product(value[i], w, s);
        slope[i] = plus_product(slope[i], w, s_slope);
        h[i] = mul(spend(h[i], s, at.V[i]), decay);
        h_slope[i] = decay * (h_slope[i] - (detach_reset ? M(0) : s_slope));
      }
    }
  }
};

template <class Scalar, int width, class M = Membrane<Scalar>>
__global__ void code(
    const Scalar* __restrict__ x, int64 x_row, const M* __restrict__ v_threshold,
    const M* __restrict__ weights, Scalar* __restrict__ out_code, int64 code_row,
    int64 T, int64 R, int64 C, double decay, double rho) {
  const int64 c = first_neighbour<width>();
  if (c >= C) return;
  const Thresholds<M, width> at(v_threshold, C, 1, c, rho);
  const Coding<M, width> coding{at, weights, int(T), M(decay)};
  const int64 walks = int64(gridDim.y) * blockDim.y;
  for (int64 r = int64(blockIdx.y) * blockDim.y + threadIdx.y; r < R; r += walks) {
    M value_in[width], value[width];
    read(x + r * x_row + c, value_in);
    coding.encode(value_in, value);
#pragma unroll
    for (int i = 0; i < width; ++i) value[i] = mul(value[i], at.V[i]);
    write(out_code + r * code_row + c, value);
  }
}

// Each walk leaves its share of the gradient of V in its row of `partial`, [walks, C].
template <class Scalar, class Surrogate, int width, class M = Membrane<Scalar>>
__global__ void code_backward(
    const Scalar* __restrict__ grad, int64 grad_row, const Scalar* __restrict__ x,
    int64 x_row, const M* __restrict__ v_threshold, const M* __restrict__ weights,
    Scalar* __restrict__ grad_x, int64 grad_x_row, M* __restrict__ partial, int64 T,
    int64 R, int64 C, double decay, double rho, double saturation, double alpha,
    int64 detach_reset) {
  const int64 c = first_neighbour<width>();
  if (c >= C) return;
  const Thresholds<M, width> at(v_threshold, C, 1, c, rho);
  const Coding<M, width> coding{at,     weights,       int(T),   M(decay),
                                M(rho), M(saturation), M(alpha), detach_reset != 0};
  M of_V[width] = {};
  const int64 walks = int64(gridDim.y) * blockDim.y;
  const int64 walk = int64(blockIdx.y) * blockDim.y + threadIdx.y;
  for (int64 r = walk; r < R; r += walks) {
    M of_code[width], h[width], value[width], slope[width];
    read(grad + r * grad_row + c, of_code);
    read(x + r * x_row + c, h);
    coding.differentiate(Surrogate{}, h, value, slope);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const M share = h[i] * reciprocal(at.V[i]) * slope[i];
      // an infinite u has no share in a code, which is finite
      of_V[i] += of_code[i] * (value[i] - (share - share == 0 ? share : M(0)));
      slope[i] *= of_code[i];
    }
    write(grad_x + r * grad_x_row + c, slope);
  }
  write(partial + walk * C + c, of_V);
}
