// A parsed request to the bytes of its reply, through the admission.
#pragma once

#include <string>

#include "core/admission.h"
#include "core/engine.h"
#include "core/request_message.h"

namespace gr2 {

// When the bytes of a request came, and when they had been parsed.
struct Arrival {
  Clock::time_point came, parsed;
};

// Waits for a worker and ranks. `out` is the reply if the outcome is kAnswered or kFallback, else the reason, if there
// is one. Nothing is answered after the deadline. Counts the request.
Outcome handle(const Engine& engine, const RequestMessage& request, const Arrival& arrival, Admission& admission,
               Call& call, Clock::time_point deadline, std::string& out);

}  // namespace gr2
