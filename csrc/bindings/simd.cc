#include "core/simd.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/arrays.h"

namespace gr2::bindings {
namespace {

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (const SimdKernels* kernels : supported_simd()) names.emplace_back(kernels->name);
  return names;
}

void use_level(const std::string& name) {
  std::string known;
  for (const SimdKernels* kernels : supported_simd()) {
    if (name == kernels->name) return use_simd(*kernels);
    known += (known.empty() ? "'" : ", '") + std::string(kernels->name) + "'";
  }
  throw py::value_error("level must be one that this processor has, " + known + ", got '" + name + "'");
}

}  // namespace

void bind_simd(py::module_& module) {
  module.def("simd_levels", &levels, "The generations of vector instructions that this processor has, lowest first.");
  module.def("simd_level", [] { return std::string(simd().name); }, "The generation in use.");
  module.def("use_simd_level", &use_level, py::arg("level"), "Use another generation from now on, in all threads.");
}

}  // namespace gr2::bindings
