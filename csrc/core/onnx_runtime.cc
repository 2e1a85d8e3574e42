#include "core/onnx_runtime.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <utility>

namespace gr2 {
namespace {

using namespace std::string_view_literals;

// b = a + a, of a and b float32 (?, 2), in opset 13.
constexpr auto kTestGraph =
    "\x08\x07\x3a\x39\n\x0e\n\x01"
    "a\n\x01"
    "a\x12\x01"
    "b\"\x03"
    "Add\x12\x01tZ\x11\n\x01"
    "a\x12\x0c\n\n\x08\x01\x12\x06\n\x00\n\x02\x08\x02"
    "b\x11\n\x01"
    "b\x12\x0c\n\n\x08\x01\x12\x06\n\x00\n\x02\x08\x02"
    "B\x04\n\x00\x10\x0d"sv;

// Releases a value of onnxruntime's at the end of a scope.
template <typename Release, typename T>
class Scoped {
 public:
  explicit Scoped(const OnnxRuntime& runtime) : runtime_(runtime) {}
  ~Scoped() {
    if (value_ != nullptr) runtime_.call<Release>(value_);
  }
  Scoped(const Scoped&) = delete;
  Scoped& operator=(const Scoped&) = delete;
  T** out() { return &value_; }
  T* get() const { return value_; }

 private:
  const OnnxRuntime& runtime_;
  T* value_ = nullptr;
};

std::size_t element_size(onnx::ElementType type) {
  switch (type) {
    case onnx::kFloat:
      return 4;
    case onnx::kInt64:
      return 8;
    case onnx::kFloat16:
      return 2;
    case onnx::kInt8:
    case onnx::kUint8:
      return 1;
  }
  throw OnnxError("a tensor of element type " + std::to_string(int{type}) + ", which gr2 does not take");
}

std::size_t byte_size(onnx::ElementType type, const std::vector<std::int64_t>& shape) {
  std::size_t bytes = element_size(type);
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  return bytes;
}

// A copy of a value that onnxruntime made.
OwnedTensor copy_of(const OnnxRuntime& runtime, onnx::Value* value) {
  Scoped<onnx::ReleaseShapeInfo, onnx::ShapeInfo> info(runtime);
  runtime.run<onnx::GetTensorTypeAndShape>(static_cast<const onnx::Value*>(value), info.out());
  const auto* const shape = static_cast<const onnx::ShapeInfo*>(info.get());
  OwnedTensor tensor{onnx::kFloat, {}, {}};
  int type = 0;
  std::size_t rank = 0;
  runtime.run<onnx::GetTensorElementType>(shape, &type);
  tensor.type = static_cast<onnx::ElementType>(type);
  runtime.run<onnx::GetDimensionsCount>(shape, &rank);
  tensor.shape.resize(rank);
  runtime.run<onnx::GetDimensions>(shape, tensor.shape.data(), rank);
  void* data = nullptr;
  runtime.run<onnx::GetTensorMutableData>(value, &data);
  const auto* const from = static_cast<const std::byte*>(data);
  tensor.data.assign(from, from + byte_size(tensor.type, tensor.shape));
  return tensor;
}

// The tensors as values that view their memory.
class Values {
 public:
  Values(const OnnxRuntime& runtime, std::span<const OnnxTensor> tensors) : runtime_(runtime) {
    values_.reserve(tensors.size());
    for (const OnnxTensor& tensor : tensors) {
      const std::size_t bytes = byte_size(tensor.type, tensor.shape);
      onnx::Value*& value = values_.emplace_back(nullptr);
      runtime.run<onnx::CreateTensorWithData>(runtime.memory(), tensor.data, bytes, tensor.shape.data(),
                                              tensor.shape.size(), int{tensor.type}, &value);
    }
  }
  // Values that onnxruntime makes.
  Values(const OnnxRuntime& runtime, std::size_t count) : runtime_(runtime), values_(count, nullptr) {}
  ~Values() {
    for (onnx::Value* const value : values_) {
      if (value != nullptr) runtime_.call<onnx::ReleaseValue>(value);
    }
  }
  Values(const Values&) = delete;
  Values& operator=(const Values&) = delete;
  onnx::Value** data() { return values_.data(); }

 private:
  const OnnxRuntime& runtime_;
  std::vector<onnx::Value*> values_;
};

}  // namespace

OnnxRuntime::OnnxRuntime(const std::string& path) {
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) throw OnnxError(path + ": cannot be loaded: " + ::dlerror());
  auto* const get_base = reinterpret_cast<const onnx::ApiBase* (*)()>(::dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) throw OnnxError(path + ": no onnxruntime, as OrtGetApiBase is not in it");
  const onnx::ApiBase* const base = get_base();
  version_ = base->get_version();
  table_ = base->get_api(onnx::kApiVersion);
  if (table_ == nullptr) {
    throw OnnxError(path + ": onnxruntime " + version_ + " lacks version " + std::to_string(onnx::kApiVersion) +
                    " of the C API");
  }
  try {
    run<onnx::CreateEnv>(int{onnx::kLogError}, "gr2", &env_);
    run<onnx::CreateCpuMemoryInfo>(int{onnx::kArenaAllocator}, int{onnx::kDefaultMemory}, &memory_);
    self_test(path);
  } catch (...) {
    release();
    throw;
  }
}

OnnxRuntime::~OnnxRuntime() {
  release();
}

void OnnxRuntime::release() const {
  if (memory_ != nullptr) call<onnx::ReleaseMemoryInfo>(memory_);
  if (env_ != nullptr) call<onnx::ReleaseEnv>(env_);
}

void OnnxRuntime::raise(onnx::Status* status) const {
  const std::string message = call<onnx::GetErrorMessage>(static_cast<const onnx::Status*>(status));
  call<onnx::ReleaseStatus>(status);
  throw OnnxError(message);
}

void OnnxRuntime::self_test(const std::string& path) const {
  const auto require = [&](bool holds, const char* what) {
    if (!holds) throw OnnxError(path + ": onnxruntime " + version_ + " is not as expected: " + what);
  };
  onnx::Status* const status = call<onnx::CreateStatus>(int{onnx::kFail}, "a message");
  require(status != nullptr, "no status");
  const bool same = call<onnx::GetErrorMessage>(static_cast<const onnx::Status*>(status)) == "a message"sv;
  const bool code = call<onnx::GetErrorCode>(static_cast<const onnx::Status*>(status)) == onnx::kFail;
  call<onnx::ReleaseStatus>(status);
  require(same && code, "a status does not say what it was made with");

  // Without an owner: this object outlives the session.
  const OnnxSession session(std::shared_ptr<const OnnxRuntime>(std::shared_ptr<void>(), this), kTestGraph, 1);
  for (const auto& [ports, name] : {std::pair{&session.inputs(), "a"}, std::pair{&session.outputs(), "b"}}) {
    require(ports->size() == 1 && ports->front().name == name && ports->front().type == onnx::kFloat &&
                ports->front().shape == std::vector<std::int64_t>{-1, 2},
            "a graph's inputs or outputs are not what it says");
  }
  std::array<float, 6> a{1, 2, 3, 4, 5, 6}, b{};
  for (const bool shrink : {false, true}) {
    b.fill(0);
    const char* const names[] = {"a", "b"};
    const OnnxTensor from{onnx::kFloat, a.data(), {3, 2}}, into{onnx::kFloat, b.data(), {3, 2}};
    session.run({names, 1}, {&from, 1}, {names + 1, 1}, {&into, 1}, shrink);
    for (std::size_t i = 0; i < a.size(); ++i) require(b[i] == 2 * a[i], "a sum is wrong");
  }
  const char *const input = "a", *const output = "b";
  const OnnxTensor from{onnx::kFloat, a.data(), {3, 2}};
  const std::vector<OwnedTensor> made = session.compute({&input, 1}, {&from, 1}, {&output, 1});
  require(made[0].type == onnx::kFloat && made[0].shape == from.shape, "a sum is of another shape");
  require(std::memcmp(made[0].data.data(), b.data(), sizeof b) == 0, "a sum is wrong");
}

OnnxSession::OnnxSession(std::shared_ptr<const OnnxRuntime> runtime, std::string_view graph, int threads)
    : runtime_(std::move(runtime)) {
  const OnnxRuntime& api = *runtime_;
  Scoped<onnx::ReleaseSessionOptions, onnx::SessionOptions> options(api);
  api.run<onnx::CreateSessionOptions>(options.out());
  api.run<onnx::SetIntraOpNumThreads>(options.get(), threads);
  api.run<onnx::SetInterOpNumThreads>(options.get(), 1);
  api.run<onnx::SetSessionLogSeverityLevel>(options.get(), int{onnx::kLogError});
  // Shapes differ from request to request: memory planned for one is of no use to the next, and is never freed.
  api.run<onnx::DisableMemPattern>(options.get());
  constexpr std::array<std::array<const char*, 2>, 3> kEntries = {{
      {"session.intra_op.allow_spinning", "0"},
      {"session.inter_op.allow_spinning", "0"},
      // The hash of a bundle covers the graph's own bytes only: external data is sought where nothing can be.
      {"session.model_external_initializers_file_folder_path", "/dev/null"},
  }};
  for (const auto& [key, value] : kEntries) api.run<onnx::AddSessionConfigEntry>(options.get(), key, value);
  Scoped<onnx::ReleaseRunOptions, onnx::RunOptions> shrinking(api);
  api.run<onnx::CreateRunOptions>(shrinking.out());
  api.run<onnx::AddRunConfigEntry>(shrinking.get(), "memory.enable_memory_arena_shrinkage", "cpu:0");
  Scoped<onnx::ReleaseSession, onnx::Session> session(api);
  api.run<onnx::CreateSessionFromArray>(api.env(), static_cast<const void*>(graph.data()), graph.size(),
                                        static_cast<const onnx::SessionOptions*>(options.get()), session.out());
  session_ = session.get();
  inputs_ = ports<onnx::SessionGetInputCount, onnx::SessionGetInputName, onnx::SessionGetInputTypeInfo>();
  outputs_ = ports<onnx::SessionGetOutputCount, onnx::SessionGetOutputName, onnx::SessionGetOutputTypeInfo>();
  std::exchange(*session.out(), nullptr);
  shrinking_ = std::exchange(*shrinking.out(), nullptr);
}

OnnxSession::~OnnxSession() {
  runtime_->call<onnx::ReleaseSession>(session_);
  runtime_->call<onnx::ReleaseRunOptions>(shrinking_);
}

template <typename Count, typename Name, typename Info>
std::vector<OnnxSession::Port> OnnxSession::ports() const {
  const OnnxRuntime& api = *runtime_;
  const onnx::Session* const session = session_;
  std::size_t count = 0, rank = 0;
  api.run<Count>(session, &count);
  onnx::Allocator* allocator = nullptr;
  api.run<onnx::GetAllocatorWithDefaultOptions>(&allocator);
  std::vector<Port> found(count);
  for (std::size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    api.run<Name>(session, i, allocator, &name);
    found[i].name = name;
    api.run<onnx::AllocatorFree>(allocator, static_cast<void*>(name));
    Scoped<onnx::ReleaseTypeInfo, onnx::TypeInfo> info(api);
    api.run<Info>(session, i, info.out());
    const onnx::ShapeInfo* shape = nullptr;
    api.run<onnx::CastTypeInfoToTensorInfo>(static_cast<const onnx::TypeInfo*>(info.get()), &shape);
    if (shape == nullptr) continue;
    api.run<onnx::GetTensorElementType>(shape, &found[i].type);
    api.run<onnx::GetDimensionsCount>(shape, &rank);
    found[i].shape.resize(rank);
    api.run<onnx::GetDimensions>(shape, found[i].shape.data(), rank);
  }
  return found;
}

void OnnxSession::run(std::span<const char* const> input_names, std::span<const OnnxTensor> inputs,
                      std::span<const char* const> output_names, std::span<const OnnxTensor> outputs,
                      bool shrink) const {
  Values from(*runtime_, inputs), into(*runtime_, outputs);
  const onnx::RunOptions* const options = shrink ? shrinking_ : nullptr;
  runtime_->run<onnx::Run>(session_, options, input_names.data(), static_cast<const onnx::Value* const*>(from.data()),
                           input_names.size(), output_names.data(), output_names.size(), into.data());
}

std::vector<OwnedTensor> OnnxSession::compute(std::span<const char* const> input_names,
                                              std::span<const OnnxTensor> inputs,
                                              std::span<const char* const> output_names) const {
  Values from(*runtime_, inputs), into(*runtime_, output_names.size());
  runtime_->run<onnx::Run>(session_, static_cast<const onnx::RunOptions*>(nullptr), input_names.data(),
                           static_cast<const onnx::Value* const*>(from.data()), input_names.size(), output_names.data(),
                           output_names.size(), into.data());
  std::vector<OwnedTensor> found;
  for (std::size_t i = 0; i < output_names.size(); ++i) found.push_back(copy_of(*runtime_, into.data()[i]));
  return found;
}

}  // namespace gr2
