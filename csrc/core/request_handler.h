// A parsed request to the bytes of its reply, through the admission.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "core/admission.h"
#include "core/engine.h"
#include "core/request_message.h"

namespace gr2 {

// When the bytes of a request came, and when they had been parsed.
struct Arrival {
  Clock::time_point came, parsed;
};

// A parsed request on its way through the admission to a reply. Counts what becomes of it. `engine`, `request`,
// `admission` and `call` must outlive it.
class RequestHandler {
 public:
  // `times` are those of the engine's requests, or null for the admission's.
  RequestHandler(const Engine& engine, const RequestMessage& request, const Arrival& arrival, Admission& admission,
                 Call& call, Clock::time_point deadline, std::shared_ptr<ServiceTimes> times = nullptr)
      : engine_(engine),
        request_(request),
        arrival_(arrival),
        admission_(admission),
        call_(call),
        deadline_(deadline),
        times_(std::move(times)) {}

  // Checks the request and asks for a worker, without waiting. Returns nothing if `finish` must follow; else the
  // outcome, with the reply in `out` if that is kFallback.
  std::optional<Outcome> start(std::string& out);
  // Waits for the worker and ranks. `out` is the reply if the outcome is kAnswered or kFallback, else the reason, if
  // there is one. Nothing is answered after the deadline; nothing is run for a call that has ended since it asked.
  Outcome finish(std::string& out);
  // In place of `finish`: nobody waits for the reply any more.
  void abandon();

 private:
  Outcome refused(Outcome outcome, std::string& out);
  Outcome count(Outcome outcome);

  const Engine& engine_;
  const RequestMessage& request_;
  const Arrival arrival_;
  Admission& admission_;
  Call& call_;
  const Clock::time_point deadline_;
  std::shared_ptr<ServiceTimes> times_;
  Clock::time_point asked_;
  Timings timings_{};
};

}  // namespace gr2
