// What each test program ends with at the first claim that does not hold.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace gr2::tests {

inline void check(bool holds, const char* what, const char* file, int line) {
  if (holds) return;
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
  std::exit(1);
}

template <typename Error, typename Action>
bool throws(const Action& action) {
  try {
    action();
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace gr2::tests

#define CHECK(condition) ::gr2::tests::check((condition), #condition, __FILE__, __LINE__)
