// Times every launcher on a GPU: one sequence of the 3B shape, 4096 positions, float16. A line of
// JSON a kernel, under its name in benchmarks/roofline.py. Before each run the level-2 cache is
// overwritten, as the floors count bytes over the memory bus; a kernel that does next to nothing
// shows what a launch and two events take. Has not run on a GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/cuda/launchers.h"
#include "tests/cuda/formats.h"

using namespace latrt;
using cuda::ActType;
using cuda::KvType;

namespace {

constexpr int kHeads = 16, kKvHeads = 2, kDim = 128, kLayers = 36, kVocab = 151936;
constexpr int kVisionHeads = 16, kVisionDim = 80, kPatches = 4096;
constexpr int kKvLen = 4096, kChunk = 1024, kCapacity = kKvLen + kChunk;
constexpr int kVisual = 1024, kFirstVisual = 16;
constexpr int kWarm = 20, kRuns = 200;
constexpr int64_t kRow = kHeads * kDim, kKvRow = kKvHeads * kDim;

void require(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s (%s)\n", what.c_str(), cudaGetErrorString(status),
                 cudaGetErrorName(status));
    std::exit(1);
}

int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    require(cudaGetDevice(&device), "cudaGetDevice");
    require(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

// Memory of the device alone: managed memory, as the tests have it, may move while it is timed.
template <class T>
class Memory {
 public:
    explicit Memory(size_t count) : bytes_(std::max<size_t>(1, count) * sizeof(T)) {
        require(cudaMalloc(&memory_, bytes_), "cudaMalloc of " + std::to_string(bytes_) + " bytes");
        require(cudaMemset(memory_, 0, bytes_), "cudaMemset");
    }
    explicit Memory(const std::vector<T>& values) : Memory(values.size()) {
        const size_t bytes = values.size() * sizeof(T);
        require(cudaMemcpy(memory_, values.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    Memory(Memory&& other) noexcept : bytes_(other.bytes_), memory_(other.memory_) {
        other.memory_ = nullptr;
    }
    Memory& operator=(Memory&&) = delete;
    ~Memory() { cudaFree(memory_); }

    T* data() const { return static_cast<T*>(memory_); }
    size_t bytes() const { return bytes_; }

 private:
    size_t bytes_;
    void* memory_ = nullptr;
};

// Random float16 in [-1, 1].
std::vector<uint16_t> halves(size_t count) {
    test::Random random(count);
    std::vector<uint16_t> bits(count);
    for (uint16_t& value : bits) value = test::to_act(random.uniform(-1, 1), ActType::f16);
    return bits;
}

class Timer {
 public:
    Timer() : scratch_(2 * size_t(attribute(cudaDevAttrL2CacheSize))), begin_(kRuns), end_(kRuns) {
        for (auto* events : {&begin_, &end_}) {
            for (cudaEvent_t& event : *events) require(cudaEventCreate(&event), "cudaEventCreate");
        }
    }
    ~Timer() {
        for (const auto* events : {&begin_, &end_}) {
            for (cudaEvent_t event : *events) cudaEventDestroy(event);
        }
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

    // Runs `launch` and prints its median, least and largest time.
    template <class Launch>
    void time(const std::string& name, Launch launch) {
        for (int run = 0; run < kWarm; ++run) require(launch(), name);
        require(cudaDeviceSynchronize(), name);
        for (size_t run = 0; run < kRuns; ++run) {
            // It also keeps the device busy until the launch is in its queue.
            require(cudaMemsetAsync(scratch_.data(), 0, scratch_.bytes(), nullptr), name);
            require(cudaEventRecord(begin_[run], nullptr), name);
            require(launch(), name);
            require(cudaEventRecord(end_[run], nullptr), name);
        }
        require(cudaDeviceSynchronize(), name);
        std::vector<float> us;
        for (size_t run = 0; run < kRuns; ++run) {
            float ms = 0;
            require(cudaEventElapsedTime(&ms, begin_[run], end_[run]), name);
            us.push_back(ms * 1e3f);
        }
        std::sort(us.begin(), us.end());
        const float median = (us[(kRuns - 1) / 2] + us[kRuns / 2]) / 2;
        std::printf("{\"kernel\": \"%s\", \"median_us\": %.3f, ", name.c_str(), double(median));
        std::printf("\"min_us\": %.3f, \"max_us\": %.3f}\n", double(us.front()), double(us.back()));
        std::fflush(stdout);
    }

 private:
    Memory<uint8_t> scratch_;
    std::vector<cudaEvent_t> begin_, end_;
};

// One layer's cache and a sequence that has `tokens` new ones behind `past`.
struct Sequence {
    Memory<uint16_t> k, v;
    Memory<int32_t> len;
    int tokens, kv_len;

    Sequence(int past, int new_tokens)
        : k(halves(size_t(kCapacity * kKvRow))),
          v(halves(size_t(kCapacity * kKvRow))),
          len(std::vector<int32_t>{past + new_tokens}),
          tokens(new_tokens),
          kv_len(past + new_tokens) {}

    cuda::KvCache cache() const {
        return {k.data(), v.data(),    nullptr,
                nullptr,  KvType::f16, kKvHeads,
                kDim,     kCapacity,   kKvHeads * kCapacity,
                kCapacity};
    }
    cuda::Sequences sequences() const {
        return {1, tokens, kv_len, nullptr, nullptr, len.data(), 0};
    }
};

// Decode or prefill: `Params` of either have the same fields.
template <class Params>
void time_attention(Timer& timer, const std::string& name, const Sequence& sequence, int num_visual,
                    size_t (*workspace_of)(const Params&),
                    cudaError_t (*launch)(const Params&, cudaStream_t)) {
    const size_t count = size_t(sequence.tokens * kRow);
    const Memory<uint16_t> q(halves(count)), out(count);
    std::vector<int64_t> listed;
    for (int n = 0; n < num_visual; ++n) listed.push_back(kFirstVisual + n);
    const Memory<int64_t> index(listed);
    const Memory<float> mass(listed.size());
    Params p = {};
    p.q = q.data(), p.out = out.data(), p.ldq = p.ldo = kRow;
    p.cache = sequence.cache(), p.sequences = sequence.sequences();
    if (num_visual != 0) p.mass = {index.data(), mass.data(), num_visual};
    p.type = ActType::f16, p.num_heads = kHeads, p.scale = 1 / std::sqrt(float(kDim));
    p.num_sms = attribute(cudaDevAttrMultiProcessorCount);
    const Memory<uint8_t> workspace(workspace_of(p));
    p.workspace = workspace.data();
    timer.time(name, [&] { return launch(p, nullptr); });
}

void time_rope_write_kv(Timer& timer, const std::string& name, int past, int tokens) {
    const Sequence sequence(past, tokens);
    const size_t count = size_t(tokens);
    const Memory<uint16_t> q(halves(count * kRow)), q_out(count * kRow);
    const Memory<uint16_t> k(halves(count * kKvRow)), v(halves(count * kKvRow));
    const Memory<float> cos(std::vector<float>(count * kDim / 2, 0.8f));
    const Memory<float> sin(std::vector<float>(count * kDim / 2, 0.6f));
    cuda::RopeWriteKvParams p = {};
    p.q = q.data(), p.q_out = q_out.data(), p.k = k.data(), p.v = v.data();
    p.cache = sequence.cache(), p.sequences = sequence.sequences();
    p.cos = cos.data(), p.sin = sin.data();
    p.num_tokens = tokens, p.type = ActType::f16, p.num_heads = kHeads;
    p.ldq = p.ldq_out = kRow, p.ldk = p.ldv = kKvRow;
    timer.time(name, [&] { return cuda::launch_rope_write_kv(p, nullptr); });
}

// Copies of `tokens` visual keys, evenly spread, in all layers.
void time_kv_reinject(Timer& timer, const std::string& name, int tokens) {
    const std::vector<uint16_t> values = halves(size_t(kCapacity * kKvRow));
    std::vector<Memory<uint16_t>> caches;
    std::vector<void*> k, v;
    for (int layer = 0; layer < kLayers; ++layer) {
        for (auto* pointers : {&k, &v}) pointers->push_back(caches.emplace_back(values).data());
    }
    std::vector<int64_t> source;
    for (int i = 0; i < tokens; ++i) source.push_back(kFirstVisual + i * (kVisual / tokens));
    const Memory<int64_t> index(source);
    const Memory<float> cos(std::vector<float>(kDim / 2, 0.8f));
    const Memory<float> sin(std::vector<float>(kDim / 2, 0.6f));
    const cuda::KvReinjectParams p = {k.data(),     v.data(),   nullptr,    nullptr,
                                      index.data(), cos.data(), sin.data(), KvType::f16,
                                      kLayers,      kKvHeads,   kDim,       kKvHeads * kCapacity,
                                      kCapacity,    0,          tokens,     kKvLen};
    timer.time(name, [&] { return cuda::launch_kv_reinject(p, nullptr); });
}

void time_route_select(Timer& timer, const std::string& name) {
    test::Random random(1);
    std::vector<double> values(kVisual);
    for (double& value : values) value = double(random.uniform(0, 1)) * 1e-3;
    const Memory<double> mass(values);
    const Memory<int64_t> selected(kVisual / 2);
    const cuda::RouteSelectParams p = {mass.data(), selected.data(), 1, kVisual, kVisual / 2};
    timer.time(name, [&] { return cuda::launch_route_select(p, nullptr); });
}

// Every key for its own source.
void time_mass_add(Timer& timer, const std::string& name) {
    const Memory<float> mass(std::vector<float>(kVisual, 1e-3f));
    std::vector<int64_t> sources;
    for (int n = 0; n < kVisual; ++n) sources.push_back(n);
    const Memory<int64_t> source(sources);
    const Memory<double> sum(kVisual);
    const cuda::MassAddParams p = {mass.data(), source.data(),           sum.data(), 1, kVisual,
                                   kVisual,     1.0 / (kLayers * kHeads)};
    timer.time(name, [&] { return cuda::launch_mass_add(p, nullptr); });
}

void time_attention_vision(Timer& timer, const std::string& name, int window) {
    constexpr int64_t row = kVisionHeads * kVisionDim;
    const size_t count = size_t(kPatches * row);
    const Memory<uint16_t> q(halves(count)), k(halves(count)), v(halves(count)), out(count);
    std::vector<int32_t> starts;
    for (int start = 0; start <= kPatches; start += window) starts.push_back(start);
    const Memory<int32_t> cu_seqlens(starts);
    const cuda::AttentionVisionParams p = {q.data(),
                                           k.data(),
                                           v.data(),
                                           out.data(),
                                           cu_seqlens.data(),
                                           nullptr,
                                           ActType::f16,
                                           kPatches / window,
                                           window,
                                           kVisionHeads,
                                           kVisionDim,
                                           1 / std::sqrt(float(kVisionDim)),
                                           row,
                                           row,
                                           row,
                                           row};
    timer.time(name, [&] { return cuda::launch_attention_vision(p, nullptr); });
}

// Top-k 50 and top-p 0.9 of about normal logits.
void time_sample(Timer& timer, const std::string& name) {
    test::Random random(1);
    std::vector<float> values(kVocab, 0.0f);
    for (float& value : values) {
        for (int i = 0; i < 12; ++i) value += random.uniform(-1.5f, 1.5f);
    }
    const Memory<float> logits(values), temperature(std::vector<float>{1});
    const Memory<float> top_p(std::vector<float>{0.9f}), logprob(size_t{1});
    const Memory<double> uniform(std::vector<double>{0.5});
    const Memory<int32_t> top_k(std::vector<int32_t>{50});
    const Memory<int64_t> banned(std::vector<int64_t>{-1}), token(size_t{1});
    const cuda::SampleParams p = {logits.data(), uniform.data(), temperature.data(),
                                  top_k.data(),  top_p.data(),   banned.data(),
                                  token.data(),  logprob.data(), 1,
                                  kVocab,        kVocab};
    timer.time(name, [&] { return cuda::launch_sample(p, nullptr); });
}

}  // namespace

int main() {
    cudaDeviceProp device = {};
    require(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
    std::fprintf(stderr, "%s, SM %d%d, %d multiprocessors\n", device.name, device.major,
                 device.minor, device.multiProcessorCount);
    Timer timer;
    const Sequence decode(kKvLen - 1, 1), chunk(kKvLen, kChunk);
    time_attention(timer, "attention_decode, one layer", decode, kVisual,
                   cuda::attention_decode_workspace, cuda::launch_attention_decode);
    time_attention(timer, "attention_decode without mass", decode, 0,
                   cuda::attention_decode_workspace, cuda::launch_attention_decode);
    time_attention(timer, "attention_prefill of 1024, one layer", chunk, kVisual,
                   cuda::attention_prefill_workspace, cuda::launch_attention_prefill);
    time_rope_write_kv(timer, "rope_write_kv, one token and layer", kKvLen - 1, 1);
    time_rope_write_kv(timer, "rope_write_kv of 1024, one layer", kKvLen, kChunk);
    time_route_select(timer, "route_select, half of 1024");
    time_mass_add(timer, "mass_add of 1024");
    time_attention_vision(timer, "attention_vision, 4096 patches by 64", 64);
    time_attention_vision(timer, "attention_vision, 4096 patches whole", kPatches);
    time_sample(timer, "sample");
    time_kv_reinject(timer, "ROUTE of 256, kv", 256);
    time_kv_reinject(timer, "COPY of 1024, kv", 1024);
}
