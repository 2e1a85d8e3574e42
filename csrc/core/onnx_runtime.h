// onnxruntime, loaded from its shared library, and sessions of graphs that run on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/onnx_api.h"

namespace gr2 {

// What onnxruntime said. Also thrown for a library that is no onnxruntime, or one that answers otherwise than expected.
class OnnxError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The library. Never unloaded: its threads and statics outlive any owner.
class OnnxRuntime {
 public:
  // Opens the library and checks by a model of its own that the functions are where they should be. Throws OnnxError.
  explicit OnnxRuntime(const std::string& path);
  ~OnnxRuntime();
  OnnxRuntime(const OnnxRuntime&) = delete;
  OnnxRuntime& operator=(const OnnxRuntime&) = delete;

  const std::string& version() const { return version_; }
  const onnx::Env* env() const { return env_; }
  const onnx::MemoryInfo* memory() const { return memory_; }

  // Calls a function that returns a value of its own.
  template <typename Slot, typename... Arguments>
  auto call(Arguments... arguments) const {
    return reinterpret_cast<typename Slot::Pointer>(const_cast<void*>(table_[Slot::index]))(arguments...);
  }
  // Calls a function that returns a status. Throws OnnxError with what it says.
  template <typename Slot, typename... Arguments>
  void run(Arguments... arguments) const {
    if (onnx::Status* const status = call<Slot>(arguments...); status != nullptr) raise(status);
  }

 private:
  [[noreturn]] void raise(onnx::Status* status) const;
  void release() const;
  void self_test(const std::string& path) const;

  const void* const* table_ = nullptr;
  std::string version_;
  onnx::Env* env_ = nullptr;
  onnx::MemoryInfo* memory_ = nullptr;
};

// A tensor in the caller's memory. `data` holds the product of `shape` values of `type`.
struct OnnxTensor {
  onnx::ElementType type;
  void* data;
  std::vector<std::int64_t> shape;
};

// A tensor with memory of its own.
struct OwnedTensor {
  onnx::ElementType type;
  std::vector<std::byte> data;
  std::vector<std::int64_t> shape;
};

// A graph, ready to run on the CPU in the calling thread. Thread-safe.
class OnnxSession {
 public:
  // An input or output; -1 in the shape for what may vary, and 0 for the type of anything but a tensor.
  struct Port {
    std::string name;
    int type = 0;
    std::vector<std::int64_t> shape;
  };

  // `graph` holds the whole model: data in other files is not read. A model run uses `threads` threads, the caller's
  // among them. Throws OnnxError.
  OnnxSession(std::shared_ptr<const OnnxRuntime> runtime, std::string_view graph, int threads);
  ~OnnxSession();
  OnnxSession(const OnnxSession&) = delete;
  OnnxSession& operator=(const OnnxSession&) = delete;

  const std::vector<Port>& inputs() const { return inputs_; }
  const std::vector<Port>& outputs() const { return outputs_; }

  // Computes `outputs`, by their names, from `inputs`. With `shrink`, memory that only this run needed is given back.
  // Throws OnnxError.
  void run(std::span<const char* const> input_names, std::span<const OnnxTensor> inputs,
           std::span<const char* const> output_names, std::span<const OnnxTensor> outputs, bool shrink) const;
  // Computes `outputs`, by their names, whose shapes are not known before. Throws OnnxError.
  std::vector<OwnedTensor> compute(std::span<const char* const> input_names, std::span<const OnnxTensor> inputs,
                                   std::span<const char* const> output_names) const;

 private:
  template <typename Count, typename Name, typename Info>
  std::vector<Port> ports() const;

  std::shared_ptr<const OnnxRuntime> runtime_;
  onnx::Session* session_ = nullptr;
  onnx::RunOptions* shrinking_ = nullptr;
  std::vector<Port> inputs_, outputs_;
};

}  // namespace gr2
