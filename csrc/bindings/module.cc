#include <cstring>
#include <exception>

#include "bindings/arrays.h"
#include "core/errors.h"

namespace gr2::bindings {
namespace {

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const FormatError& error) {
    py::set_error(PyExc_ValueError, error.what());
  } catch (const FileError& error) {
    // OSError(errno, text, path) becomes the matching subclass, FileNotFoundError for example.
    py::set_error(PyExc_OSError, py::make_tuple(error.code(), std::strerror(error.code()), error.path()));
  }
}

}  // namespace
}  // namespace gr2::bindings

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "The C++ core of gr2: codebooks and per-request candidate tries and decoders.";
  pybind11::register_local_exception_translator(gr2::bindings::translate);
  gr2::bindings::bind_codebook(module);
  gr2::bindings::bind_candidate_trie(module);
  gr2::bindings::bind_candidate_decoder(module);
  gr2::bindings::bind_catalog_trie(module);
  gr2::bindings::bind_item_memory(module);
  gr2::bindings::bind_prefix_cache(module);
  gr2::bindings::bind_student(module);
  gr2::bindings::bind_engine(module);
  gr2::bindings::bind_retrieval(module);
  gr2::bindings::bind_simd(module);
}
