// A gr2.v1.RerankRequest, read from its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace gr2 {

struct ItemIds {
  std::vector<std::int64_t> ints;
  std::vector<std::string_view> strings;
  std::size_t size() const { return ints.size() + strings.size(); }
};

// The fields of proto/gr2/v1/reranker.proto. Strings are views into the bytes that were parsed.
struct RequestMessage {
  static constexpr std::int32_t kPriorityLow = 2;

  std::string_view request_id;
  ItemIds history;
  ItemIds candidates;
  std::vector<float> scores;
  std::vector<float> features;
  std::uint32_t top_n = 0;
  std::string_view bundle;
  bool fallback = false;
  std::int32_t priority = 0;

  // Reads the message; false if the bytes are none, exactly where the official parser refuses them.
  bool parse(std::string_view bytes);
};

// What a bundle allows a request to hold.
struct RequestLimits {
  static constexpr std::size_t kMaxRequestId = 128;

  bool string_ids = false;
  std::size_t max_history = 0;
  std::size_t max_candidates = 0;
  std::size_t feature_width = 0;
};

// Whether a request keeps the rules of gr2.serving.request.
bool keeps_rules(const RequestMessage& request, const RequestLimits& limits);

}  // namespace gr2
