// The part of onnxruntime's C API that gr2 uses. Its wheel ships the library without headers.
//
// The table's slots are only ever appended to; their order is that of the OrtApi structure in onnxruntime_c_api.h. A
// version that a library supports has all the slots of the versions before it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gr2::onnx {

// Of onnxruntime 1.20, the oldest that gr2 supports.
inline constexpr std::uint32_t kApiVersion = 20;

struct Env;
struct Status;  // null for success
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct TypeInfo;
struct ShapeInfo;
struct SessionOptions;
struct Allocator;

enum ElementType : int { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10 };
enum Logging : int { kLogError = 3 };
enum AllocatorType : int { kArenaAllocator = 1 };
enum MemoryType : int { kDefaultMemory = 0 };
enum ErrorCode : int { kFail = 1 };

struct ApiBase {
  const void* const* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

// A slot of the table and the type of its function.
template <std::size_t kIndex, typename Function>
struct Slot;
template <std::size_t kIndex, typename Result, typename... Arguments>
struct Slot<kIndex, Result(Arguments...)> {
  using Pointer = Result (*)(Arguments...);
  static constexpr std::size_t index = kIndex;
};

using CreateStatus = Slot<0, Status*(int code, const char* message)>;
using GetErrorCode = Slot<1, int(const Status*)>;
using GetErrorMessage = Slot<2, const char*(const Status*)>;
using CreateEnv = Slot<3, Status*(int level, const char* name, Env**)>;
using CreateSessionFromArray = Slot<8, Status*(const Env*, const void*, std::size_t, const SessionOptions*, Session**)>;
using Run = Slot<9, Status*(Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs,
                            std::size_t input_count, const char* const* output_names, std::size_t output_count,
                            Value** outputs)>;
using CreateSessionOptions = Slot<10, Status*(SessionOptions**)>;
using DisableMemPattern = Slot<17, Status*(SessionOptions*)>;
using SetSessionLogSeverityLevel = Slot<22, Status*(SessionOptions*, int)>;
using SetIntraOpNumThreads = Slot<24, Status*(SessionOptions*, int)>;
using SetInterOpNumThreads = Slot<25, Status*(SessionOptions*, int)>;
using SessionGetInputCount = Slot<30, Status*(const Session*, std::size_t*)>;
using SessionGetOutputCount = Slot<31, Status*(const Session*, std::size_t*)>;
using SessionGetInputTypeInfo = Slot<33, Status*(const Session*, std::size_t, TypeInfo**)>;
using SessionGetOutputTypeInfo = Slot<34, Status*(const Session*, std::size_t, TypeInfo**)>;
using SessionGetInputName = Slot<36, Status*(const Session*, std::size_t, Allocator*, char**)>;
using SessionGetOutputName = Slot<37, Status*(const Session*, std::size_t, Allocator*, char**)>;
using CreateRunOptions = Slot<39, Status*(RunOptions**)>;
using CreateTensorWithData = Slot<49, Status*(const MemoryInfo*, void*, std::size_t bytes, const std::int64_t* shape,
                                              std::size_t rank, int type, Value**)>;
using GetTensorMutableData = Slot<51, Status*(Value*, void**)>;
using CastTypeInfoToTensorInfo = Slot<55, Status*(const TypeInfo*, const ShapeInfo**)>;
using GetTensorElementType = Slot<60, Status*(const ShapeInfo*, int*)>;
using GetDimensionsCount = Slot<61, Status*(const ShapeInfo*, std::size_t*)>;
using GetDimensions = Slot<62, Status*(const ShapeInfo*, std::int64_t*, std::size_t)>;
using GetTensorTypeAndShape = Slot<65, Status*(const Value*, ShapeInfo**)>;
using CreateCpuMemoryInfo = Slot<69, Status*(int allocator, int memory, MemoryInfo**)>;
using AllocatorFree = Slot<76, Status*(Allocator*, void*)>;
using GetAllocatorWithDefaultOptions = Slot<78, Status*(Allocator**)>;
using ReleaseEnv = Slot<92, void(Env*)>;
using ReleaseStatus = Slot<93, void(Status*)>;
using ReleaseMemoryInfo = Slot<94, void(MemoryInfo*)>;
using ReleaseSession = Slot<95, void(Session*)>;
using ReleaseValue = Slot<96, void(Value*)>;
using ReleaseRunOptions = Slot<97, void(RunOptions*)>;
using ReleaseTypeInfo = Slot<98, void(TypeInfo*)>;
using ReleaseShapeInfo = Slot<99, void(ShapeInfo*)>;
using ReleaseSessionOptions = Slot<100, void(SessionOptions*)>;
using AddSessionConfigEntry = Slot<130, Status*(SessionOptions*, const char* key, const char* value)>;
using AddRunConfigEntry = Slot<165, Status*(RunOptions*, const char* key, const char* value)>;

}  // namespace gr2::onnx
