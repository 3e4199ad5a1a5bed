// Convolutions, their two gradients and matrix products by oneDNN, as one custom call of XLA.
//
// A list of integers, the spec, defines the computation:
//   member       0 convolution, 1 gradient of the image, 2 gradient of the kernel, 3 product
//   types        0 float32, 1 bfloat16: of all arrays, then of the kernel, its gradient, or a
//                product's y
//   products     total number of products of two numbers
//   convolution  rank, B, C, F, groups, size, small, taps, strides, low, high, dilation
//   product      rank (axes of the batch), batch..., M, K, N; the strides of x (batch..., M, K), of
//                y (batch..., K, N) and of the result (batch..., M, N), which is float32
// Sums are float32. A call is cut along its first axis into pieces, which XLA's threads share. Each
// piece runs in one thread, with OpenMP's team size set to one: teams that several threads open at
// once wait for each other. Results depend only on the spec and the number of threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>
#include "dnnl.hpp"
#include "xla/ffi/api/ffi.h"

extern "C" int omp_get_max_threads();
extern "C" void omp_set_num_threads(int);
namespace {
namespace ffi = xla::ffi;
using dnnl::memory;
using Numbers = std::vector<int64_t>;
using Bytes = char*;
constexpr size_t kMostPlans = 512;            // the most plans to keep at once
constexpr int64_t kKept = 1 << 24;            // the most bytes of kernels that a thread keeps
constexpr int64_t kFewestProducts = 1 << 20;  // the fewest products for more than one thread
constexpr auto kSum = memory::data_type::f32, kHalf = memory::data_type::bf16;
enum Member { kConvolution, kImage, kKernel, kProduct };

// Sets the calling thread's OpenMP team size to one during its lifetime.
struct OneThread {
  int before = omp_get_max_threads();
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before); }
};

// Calls work(0) ... work(count - 1) in this thread and in free threads of XLA. A free thread takes
// the next piece, so that this thread never waits for a piece that has not begun.
void in_parallel(ffi::ThreadPool& pool, int64_t count, const std::function<void(int64_t)>& work) {
  if (count == 1) return work(0);
  struct Shared {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::exception_ptr error;
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto shared = std::make_shared<Shared>();
  auto take = [shared, count, &work] {  // `work` does not exist after all pieces are done
    for (int64_t i; (i = shared->next++) < count;) {
      try {
        work(i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->error = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (++shared->done == count) shared->finished.notify_all();
    }
  };
  for (int64_t i = std::min(count, pool.num_threads()); i > 1; --i)
    pool.Schedule([take]() mutable { take(); });
  take();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == count; });
  if (shared->error) std::rethrow_exception(shared->error);
}

const dnnl::engine& engine() {
  static const auto& cpu = *new dnnl::engine(dnnl::engine::kind::cpu, 0);  // outlives all threads
  return cpu;
}

memory::desc bytes_of(size_t count) {
  return memory::desc({int64_t(count)}, memory::data_type::u8, memory::format_tag::a);
}

// Memory of one thread, which grows to the largest size requested.
Bytes grown(memory& own, size_t count) {
  if (!own.get(true) || own.get_desc().get_size() < count) own = memory(bytes_of(count), engine());
  return static_cast<Bytes>(own.get_data_handle());
}
thread_local memory scratchpad, copies;

// Reads the parts of a spec in order.
struct Reader {
  const int64_t* next;
  int64_t one() { return *next++; }
  memory::dims some(int64_t count) { return next += count, memory::dims(next - count, next); }
};

// How a spec is computed with a number of threads: in `pieces` of `most` examples each.
struct Plan {
  Member member;
  memory::data_type type, wide;  // of all arrays, and of `given`
  int64_t pieces = 1, most = 1;
  dnnl::primitive primitive;
  std::vector<int> names;  // of the primitive's arguments: first, second, result
  memory::desc first, second, result;
  memory::desc given;  // the kernel, its gradient or a matrix y in XLA's layout
  std::optional<dnnl::reorder> relayout;  // from `given` to `second`, or from `result` to `given`
  size_t scratch = 0;
  std::string implementation;  // name of oneDNN's implementation
  int64_t steps[3] = {0, 0, 0};  // bytes between pieces of first, second and result
  std::shared_ptr<const Plan> last;  // plan of the last piece, if that has fewer examples

  Plan(const Numbers& spec, int64_t threads, int64_t tail = 0);
  void convolution(Reader read);
  void product(Reader read);
  dnnl::primitive_attr own;  // asks for a scratchpad per call: oneDNN's default one is shared
  template <typename Description>
  void finish(const Description& of, std::vector<int> called) {
    primitive = dnnl::primitive(of);
    names = called;
    scratch = of.scratchpad_desc().get_size();
    implementation = of.impl_info_str();
  }
};

// Describes an array that lies in memory as [outer, *space, inner...] with its axes in oneDNN's
// order: `lead`, then the spatial axes. `strides` are those of `lead`, 0 for the outer axis.
memory::desc placed(memory::dims lead, const memory::dims& space, memory::dims strides,
                    int64_t inner, memory::data_type type) {
  const size_t first = lead.size();
  lead.insert(lead.end(), space.begin(), space.end());
  strides.resize(lead.size());
  for (size_t i = space.size(); i-- > 0; inner *= space[i]) strides[first + i] = inner;
  for (size_t i = 0; i < first; ++i) strides[i] = strides[i] ? strides[i] : inner;
  return memory::desc(lead, type, strides);
}

void Plan::convolution(Reader read) {
  const int64_t rank = read.one(), B = (read.one(), most);
  const int64_t C = read.one(), F = read.one(), G = read.one(), c = C / G, f = F / G;
  const auto size = read.some(rank), small = read.some(rank), taps = read.some(rank);
  const auto strides = read.some(rank), low = read.some(rank), high = read.some(rank);
  auto gaps = read.some(rank);
  for (auto& gap : gaps) --gap;  // no dilation is 0 in oneDNN
  const auto x = placed({B, C}, size, {0, 1}, C, type);
  const auto y = placed({B, F}, small, {0, 1}, F, type);
  given = G == 1 ? placed({F, C}, taps, {1, F}, C * F, wide)
                 : placed({G, f, c}, taps, {f, 1, F}, c * F, wide);
  const auto any = memory::format_tag::any;
  const memory::desc kernel(given.get_dims(), type, any), sum(given.get_dims(), kSum, any);
  const auto direct = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(  // the gradients need it as a hint
      engine(), dnnl::prop_kind::forward_training, direct, x, kernel, y, strides, gaps, low, high,
      own);
  if (member == kConvolution) {
    first = x, second = forward.weights_desc(), result = y;
    finish(forward, {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST});
  } else if (member == kImage) {
    const dnnl::convolution_backward_data::primitive_desc gradient(
        engine(), direct, x, kernel, y, strides, gaps, low, high, forward, own);
    first = y, second = gradient.weights_desc(), result = x;
    finish(gradient, {DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC});
  } else {
    const dnnl::convolution_backward_weights::primitive_desc gradient(
        engine(), direct, x, sum, y, strides, gaps, low, high, forward, own);
    first = x, second = y, result = gradient.diff_weights_desc();
    finish(gradient, {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS});
  }
}

void Plan::product(Reader read) {
  const int64_t rank = read.one();
  auto batch = read.some(rank);
  int64_t M = read.one();
  const int64_t K = read.one(), N = read.one();
  (rank ? batch[0] : M) = most;
  auto matrix = [&](int64_t rows, int64_t columns, memory::data_type kind) {
    auto dims = batch;
    dims.insert(dims.end(), {rows, columns});
    return memory::desc(dims, kind, read.some(rank + 2));
  };
  first = matrix(M, K, type), given = matrix(K, N, wide);
  result = matrix(M, N, kSum);
  const memory::desc rounded(given.get_dims(), type, memory::format_tag::any);
  const auto& y = wide == type ? given : rounded;
  const dnnl::matmul::primitive_desc made(engine(), first, y, result, own);
  second = made.weights_desc();
  finish(made, {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST});
}

Plan::Plan(const Numbers& spec, int64_t threads, int64_t tail) : member(Member(spec.at(0))) {
  OneThread alone;
  type = spec.at(1) ? kHalf : kSum, wide = spec.at(2) ? kHalf : kSum;
  own.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  Reader read{spec.data() + 3};
  const bool worth = read.one() >= kFewestProducts, is_product = member == kProduct;
  const int64_t rank = spec[4], examples = spec[5];  // rows of x in a product without a batch
  most = tail ? tail : worth ? (examples + threads - 1) / threads : examples;
  pieces = tail ? 1 : (examples + most - 1) / most;
  is_product ? product(read) : convolution(read);
  const auto& from = member == kKernel ? result : given;
  const auto& into = member == kKernel ? given : second;
  if (member == kKernel || from != into) {
    const dnnl::reorder::primitive_desc described(engine(), from, engine(), into, own);
    relayout = dnnl::reorder(described);
    scratch = std::max(scratch, described.scratchpad_desc().get_size());
  }
  auto step = [&](const memory::desc& of) {
    return of.get_strides()[0] * memory::data_type_size(of.get_data_type()) * most;
  };
  steps[0] = step(first);
  if (member == kKernel || (is_product && rank)) steps[1] = step(second);
  steps[2] = member == kKernel ? (result.get_size() + 63) / 64 * 64 : step(result);
  if (pieces * most == examples || tail) return;
  last = std::make_shared<const Plan>(spec, 1, examples - (pieces - 1) * most);
  const bool other = member == kKernel ? result != last->result : second != last->second;
  if (relayout && other) *this = Plan(spec, 1, examples);  // in one piece
}

// Plans are kept, and all dropped when there are too many; a running call keeps its own.
std::shared_ptr<const Plan> plan_of(Numbers spec, int64_t threads) {
  static std::mutex mutex;
  static auto& plans = *new std::map<Numbers, std::shared_ptr<const Plan>>;
  spec.push_back(threads);
  std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = plans.find(spec); found != plans.end()) return found->second;
  if (plans.size() >= kMostPlans) plans.clear();
  return plans[spec] = std::make_shared<const Plan>(spec, threads);
}

memory at(const memory::desc& of, void* data) { return memory(of, engine(), data); }

void execute(const Plan& plan, const dnnl::primitive& primitive,
             std::unordered_map<int, memory> arguments) {
  OneThread alone;
  dnnl::stream stream(engine());
  arguments[DNNL_ARG_SCRATCHPAD] = at(bytes_of(plan.scratch), grown(scratchpad, plan.scratch));
  primitive.execute(stream, arguments);
  stream.wait();
}

void lay_out(const Plan& plan, const memory& from, const memory& into) {
  execute(plan, *plan.relayout, {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, into}});
}

void run(const Plan& plan, ffi::ThreadPool& pool, Bytes first, Bytes second, Bytes result) {
  const Bytes whole = result;
  if (plan.member == kKernel) {
    result = grown(copies, plan.steps[2] * plan.pieces);
  } else if (plan.relayout) {
    const Bytes copy = grown(copies, plan.second.get_size());
    lay_out(plan, at(plan.given, second), at(plan.second, copy));
    second = copy;
  }
  in_parallel(pool, plan.pieces, [&](int64_t i) {
    const Plan& part = plan.last && i == plan.pieces - 1 ? *plan.last : plan;
    execute(part, part.primitive, {{part.names[0], at(part.first, first + i * plan.steps[0])},
                                   {part.names[1], at(part.second, second + i * plan.steps[1])},
                                   {part.names[2], at(part.result, result + i * plan.steps[2])}});
  });
  if (plan.member != kKernel) return;
  auto* total = reinterpret_cast<float*>(result);
  for (int64_t i = 1; i < plan.pieces; ++i) {
    const auto* part = reinterpret_cast<const float*>(result + i * plan.steps[2]);
    for (int64_t j = 0; j < plan.steps[2] / 4; ++j) total[j] += part[j];
  }
  lay_out(plan, at(plan.result, total), at(plan.given, whole));
  if (plan.steps[2] * plan.pieces > kKept) copies = memory();
}

ffi::Error call(ffi::ThreadPool pool, ffi::AnyBuffer first, ffi::AnyBuffer second,
                ffi::Result<ffi::AnyBuffer> result, ffi::Span<const int64_t> spec) try {
  const auto threads = std::max<int64_t>(1, pool.num_threads());
  const auto plan = plan_of(Numbers(spec.begin(), spec.end()), threads);
  run(*plan, pool, static_cast<Bytes>(first.untyped_data()),
      static_cast<Bytes>(second.untyped_data()), static_cast<Bytes>(result->untyped_data()));
  return ffi::Error::Success();
} catch (const std::exception& e) {
  return ffi::Error(ffi::ErrorCode::kInternal, std::string("oneDNN: ") + e.what());
}
}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(genjax_onednn, call, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
    .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
    .Attr<ffi::Span<const int64_t>>("spec"));

// The names of a spec's implementations, "" if there is none; valid until the thread's next call.
extern "C" const char* genjax_onednn_implementation(const int64_t* spec, int64_t length,
                                                    int64_t threads) try {
  thread_local std::string name;
  const Plan plan(Numbers(spec, spec + length), threads);
  name = plan.implementation + (plan.last ? " " + plan.last->implementation : "");
  return name.c_str();
} catch (const std::exception&) { return ""; }
