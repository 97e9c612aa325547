// The trellis and requantisation for training `wavelet` on a GPU: lic.layers.trellis and lic.layers.integer are the
// definitions. Constants come from there (see device.py). With -DCPU a plain C++ compiler makes a slow one for tests.
#include <cmath>
#include <cstring>

#ifdef CPU
#define KERNEL(name, ...) static void name(int i, __VA_ARGS__)
#define LAUNCH(name, count, block, ...) \
  for (int i = 0; i < (count); i++) name(i, __VA_ARGS__)
#define BEGIN(count)
#define ADD(where, what) *(where) += what
#define DEVICE static inline
#else
#define KERNEL(name, ...) static __global__ void name(__VA_ARGS__)
#define LAUNCH(name, count, block, ...) \
  name<<<((count) + (block) - 1) / (block), block, 0, (cudaStream_t)stream>>>(__VA_ARGS__)
#define BEGIN(count)                               \
  int i = blockIdx.x * blockDim.x + threadIdx.x; \
  if (i >= (count)) return;
#define ADD(where, what) atomicAdd(where, what)
#define DEVICE static __device__ __forceinline__
#endif

typedef unsigned short bfloat;  // its bits

DEVICE float real(bfloat x) {
  unsigned bits = (unsigned)x << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

DEVICE bfloat nearest_bfloat(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

DEVICE int limited(int x, int low, int high) { return x < low ? low : x > high ? high : x; }

// What the prior says of a coefficient (trellis.Expected), and the coefficient's position.
struct Expected {
  int table, nearest, sign, unit;

  DEVICE Expected of(float mean, float log_scale) {
    Expected e;
    int scale = limited(((int)rintf(log_scale * 256) * SCALE_FACTOR + SCALE_OFFSET) >> 8, 0, SCALES - 1);
    e.unit = scale >= FIRST ? UNIT : SURE_UNIT;
    int sum = (int)rintf(mean * 1024) + e.unit, eighths = sum / (2 * e.unit) - (sum % (2 * e.unit) < 0);
    e.nearest = (eighths + 4) >> 3;
    int offset = eighths - (e.nearest << 3);
    e.table = scale * MEANS + (offset < 0 ? -offset : offset);
    e.sign = offset < 0 ? -1 : 1;
    return e;
  }

  DEVICE float position(float value, const Expected& e) {
    return e.sign * (value * (1 << FRACTION) / e.unit - 2 * e.nearest);
  }
};

DEVICE int position_of(int symbol, int quantiser) { return 2 * symbol - quantiser * ((symbol > 0) - (symbol < 0)); }

DEVICE int point_index(const Expected& e, int symbol, int quantiser) {
  return (e.table + TABLES * quantiser) * (2 * POINTS_REACH + 1) + limited(symbol, -POINTS_REACH, POINTS_REACH) +
         POINTS_REACH;
}

struct Prices {
  const float *bits, *points;
  float lagrangian;

  DEVICE float of(const Prices& p, int symbol, int quantiser, float x, const Expected& e) {
    float error = (x - position_of(symbol, quantiser)) * e.unit - p.points[point_index(e, symbol, quantiser)];
    error /= 1 << FRACTION;
    int entry = (e.table + TABLES * quantiser) * (2 * REACH + 1) + limited(symbol, -REACH, REACH) + REACH;
    return error * error + p.lagrangian * p.bits[entry];
  }
};

DEVICE int rounded(float x, const Expected& e, const Prices& p) {
  int lower = (int)floorf(x / 2);
  return lower + (Prices::of(p, lower + 1, 0, x, e) < Prices::of(p, lower, 0, x, e));
}

DEVICE int value_of(int symbol, int quantiser, const Expected& e, const float* points) {
  int moved = (int)rintf(points[point_index(e, symbol, quantiser)]);
  return (2 * e.nearest + e.sign * position_of(symbol, quantiser)) * e.unit + e.sign * moved;
}

// Each coefficient rounded by itself: the values.
KERNEL(k_draft, const float* c, const float* mean, const float* log_scale, Prices p, int* value, int n) {
  BEGIN(n)
  Expected e = Expected::of(mean[i], log_scale[i]);
  value[i] = value_of(rounded(Expected::position(c[i], e), e, p), 0, e, p.points);
}

// Cost and symbol (4, n) of the best choice at 2 * quantiser + parity. A cost of -1 first: not in the trellis.
KERNEL(k_choices, const float* c, const float* mean, const float* log_scale, Prices p, float* cost, short* symbol, int n) {
  BEGIN(n)
  Expected e = Expected::of(mean[i], log_scale[i]);
  float x = Expected::position(c[i], e);
  if (e.table < FIRST * MEANS) {
    cost[i] = -1;
    symbol[i] = rounded(x, e, p);
    return;
  }
  int side = x < 0 ? -1 : 1;
  bool narrow = e.table < BROAD * MEANS;
  for (int choice = 0; choice < 4; choice++) {
    int quantiser = choice >> 1, parity = choice & 1;
    int near = side * (2 * (int)floorf((fabsf(x) + quantiser - 2 * parity) / 4) + parity), far = near + 2 * side;
    float first = Prices::of(p, near, quantiser, x, e), second = Prices::of(p, far, quantiser, x, e);
    if (narrow && !parity && abs(near) > REACH) first = INFINITY;
    if (narrow && !parity && abs(far) > REACH) second = INFINITY;
    cost[choice * n + i] = second < first ? second : first;
    symbol[choice * n + i] = second < first ? far : near;
  }
}

// The Viterbi algorithm. Path i has the coefficients i, i + paths, ...; those that aren't in the trellis are passed over.
constexpr int BEFORE[2][2][STATES] = BEFORE_VALUES;  // the two ways to each state: from which states, by which choices

constexpr unsigned long long packed(int way, int what) {  // four bits a state
  unsigned long long out = 0;
  for (int state = 0; state < STATES; state++) out |= (unsigned long long)BEFORE[way][what][state] << 4 * state;
  return out;
}

KERNEL(k_path, const float* cost, unsigned short* ways, unsigned char* choice, int n, int paths) {
  BEGIN(paths)
  constexpr unsigned long long from[2] = {packed(0, 0), packed(1, 0)}, by[2] = {packed(0, 1), packed(1, 1)};
  float totals[STATES];
#pragma unroll
  for (int state = 0; state < STATES; state++) totals[state] = state ? INFINITY : 0;
  for (int at = i; at < n; at += paths) {
    if (cost[at] < 0) continue;
    float costs[4] = {cost[at], cost[n + at], cost[2 * n + at], cost[3 * n + at]}, after[STATES];
    unsigned second = 0;
#pragma unroll
    for (int state = 0; state < STATES; state++) {
      float one = totals[from[0] >> 4 * state & 15] + costs[by[0] >> 4 * state & 15];
      float two = totals[from[1] >> 4 * state & 15] + costs[by[1] >> 4 * state & 15];
      after[state] = two < one ? two : one;
      second |= (unsigned)(two < one) << state;
    }
#pragma unroll
    for (int state = 0; state < STATES; state++) totals[state] = after[state];
    ways[at] = second;
  }
  int last = 0;
  float least = totals[0];
#pragma unroll
  for (int state = 1; state < STATES; state++) {
    if (totals[state] < least) {
      least = totals[state];
      last = state;
    }
  }
  for (int at = i + (n - 1 - i) / paths * paths; at >= 0; at -= paths) {
    if (cost[at] < 0) {
      choice[at] = NOT_IN_TRELLIS;
      continue;
    }
    int way = ways[at] >> last & 1;
    choice[at] = (way ? by[1] : by[0]) >> 4 * last & 15;
    last = (way ? from[1] : from[0]) >> 4 * last & 15;
  }
}

// What was chosen: values, the ends of their cells, and every fourth coefficient's share of what moves the points
// (trellis.Centroids).
KERNEL(k_chosen, const float* c, const float* mean, const float* log_scale, const float* points, const short* symbol,
       const unsigned char* choice, int* value, float* lower, float* upper, float* sums, float* counts, int n) {
  BEGIN(n)
  Expected e = Expected::of(mean[i], log_scale[i]);
  int chosen = choice[i] == NOT_IN_TRELLIS ? 0 : choice[i], quantiser = chosen >> 1, s = symbol[chosen * n + i];
  value[i] = value_of(s, quantiser, e, points);
  int distance = abs(position_of(s, quantiser));
  float first = quantiser ? 0.5f : 1.0f, outer = distance ? distance + 1 : first;
  float inner = distance ? fmaxf(distance - 1, first) : -first;
  float a = (2 * e.nearest + e.sign * (s < 0 ? -outer : inner)) * e.unit / (float)(1 << FRACTION);
  float b = (2 * e.nearest + e.sign * (s < 0 ? -inner : outer)) * e.unit / (float)(1 << FRACTION);
  lower[i] = fminf(a, b);
  upper[i] = fmaxf(a, b);
  if (i % 4) return;
  int at = point_index(e, s, quantiser);
  ADD(sums + at, (Expected::position(c[i], e) - position_of(s, quantiser)) * e.unit);
  ADD(counts + at, 1.0f);
}

// (sums + bias) * factor, rounded and limited; channels last.
KERNEL(k_requantise, const bfloat* sums, const float* bias, const float* factor, bfloat* out, unsigned char* inside,
       int channels, float low, float high, int n) {
  BEGIN(n)
  float x = rintf((real(sums[i]) + bias[i % channels]) * factor[i % channels]), y = fminf(fmaxf(x, low), high);
  out[i] = nearest_bfloat(y);
  inside[i] = x == y;
}

KERNEL(k_requantise_back, const bfloat* gradient, const float* factor, const unsigned char* inside, bfloat* out,
       int channels, int n) {
  BEGIN(n)
  out[i] = inside[i] ? nearest_bfloat(real(gradient[i]) * factor[i % channels]) : 0;
}

extern "C" {
void draft(void* stream, const float* c, const float* mean, const float* log_scale, const float* bits,
           const float* points, float lagrangian, int* value, int n) {
  Prices p = {bits, points, lagrangian};
  LAUNCH(k_draft, n, 256, c, mean, log_scale, p, value, n);
}

void quantise(void* stream, const float* c, const float* mean, const float* log_scale, const float* bits,
              const float* points, float lagrangian, float* cost, short* symbol, unsigned short* ways,
              unsigned char* choice, int* value, float* lower, float* upper, float* sums, float* counts, int paths,
              int n) {
  Prices p = {bits, points, lagrangian};
  LAUNCH(k_choices, n, 256, c, mean, log_scale, p, cost, symbol, n);
  LAUNCH(k_path, paths, 32, cost, ways, choice, n, paths);
  LAUNCH(k_chosen, n, 256, c, mean, log_scale, points, symbol, choice, value, lower, upper, sums, counts, n);
}

void requantise(void* stream, const bfloat* sums, const float* bias, const float* factor, bfloat* out,
                unsigned char* inside, int channels, float low, float high, int n) {
  LAUNCH(k_requantise, n, 256, sums, bias, factor, out, inside, channels, low, high, n);
}

void requantise_back(void* stream, const bfloat* gradient, const float* factor, const unsigned char* inside, bfloat* out,
                     int channels, int n) {
  LAUNCH(k_requantise_back, n, 256, gradient, factor, inside, out, channels, n);
}
}
