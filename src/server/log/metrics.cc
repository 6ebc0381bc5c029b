#include "server/log/metrics.h"

#include <algorithm>
#include <cstdio>

namespace gemma4 {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", value);
  return text;
}

std::string head(const std::string& name, const char* type, const std::string& help) {
  return "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

std::string counter(const std::string& name, const std::string& help, double value) {
  return head(name, "counter", help) + name + " " + number(value) + "\n";
}

std::string gauge(const std::string& name, const std::string& help, double value) {
  return head(name, "gauge", help) + name + " " + number(value) + "\n";
}

std::string pages(const std::string& name, const std::string& help, const int (&count)[kAttentionKinds]) {
  std::string out = head(name, "gauge", help);
  for (int kind = 0; kind < kAttentionKinds; ++kind) {
    out += name + "{layers=\"" + (kind == kFull ? "full" : "sliding") + "\"} " + std::to_string(count[kind]) + "\n";
  }
  return out;
}

std::string drafts(const DraftStats& drafts) {
  const auto n = [](uint64_t value) { return static_cast<double>(value); };
  std::string out = counter("gemma4_rounds_total", "Answers' steps that verified a draft or more.", n(drafts.rounds));
  out += counter("gemma4_drafted_total", "Drafts verified.", n(drafts.drafted));
  out += counter("gemma4_accepted_total", "Of those: became part of an answer.", n(drafts.accepted));
  out += head("gemma4_accepted_by_position_total", "counter", "The same, by the draft's position in its round.");
  for (size_t i = 0; i < drafts.accepted_by_position.size(); ++i) {
    out += "gemma4_accepted_by_position_total{position=\"" + std::to_string(i + 1) + "\"} " +
           std::to_string(drafts.accepted_by_position[i]) + "\n";
  }
  return out;
}

}  // namespace

void Histogram::add(double seconds) {
  ++counts_[std::ranges::lower_bound(kBounds, seconds) - kBounds.begin()];
  sum_us_ += static_cast<uint64_t>(std::max(seconds, 0.0) * 1e6);
}

std::string Histogram::text(const std::string& name, const std::string& help) const {
  std::string out = head(name, "histogram", help);
  uint64_t total = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i];
    const std::string bound = i < kBounds.size() ? number(kBounds[i]) : "+Inf";
    out += name + "_bucket{le=\"" + bound + "\"} " + std::to_string(total) + "\n";
  }
  out += name + "_sum " + number(static_cast<double>(sum_us_) / 1e6) + "\n";
  return out + name + "_count " + std::to_string(total) + "\n";
}

void Metrics::answered(const std::string& route, int status) {
  const MutexLock lock(mutex_);
  ++answered_[{route, status}];
}

std::string Metrics::text(const EngineStats& e, const HttpStats& http) const {
  std::string out = head("gemma4_http_requests_total", "counter", "HTTP requests answered, by route and status.");
  {
    const MutexLock lock(mutex_);
    for (const auto& [key, count] : answered_) {
      out += "gemma4_http_requests_total{route=\"" + key.first + "\",status=\"" + std::to_string(key.second) + "\"} " +
             std::to_string(count) + "\n";
    }
  }
  const auto n = [](auto value) { return static_cast<double>(value); };
  out += counter("gemma4_requests_total", "Prompts taken by the engine.", n(e.requests));
  out += counter("gemma4_requests_finished_total", "Prompts answered.", n(e.finished));
  out += counter("gemma4_requests_cancelled_total", "Prompts given up by their client.", n(e.cancelled));
  out += counter("gemma4_requests_failed_total", "Prompts that ended with an error.", n(e.failed));
  out += counter("gemma4_preemptions_total", "Times a prompt gave its memory to another.", n(e.preemptions));
  out += gauge("gemma4_requests_waiting", "Prompts in the queue.", e.waiting);
  out += gauge("gemma4_requests_running", "Prompts being computed.", e.running);
  out += counter("gemma4_prompt_tokens_total", "Tokens of prompts.", n(e.prompt_tokens));
  out += counter("gemma4_prompt_tokens_cached_total", "Of those: found in the prefix cache.", n(e.cached_tokens));
  out += counter("gemma4_prefix_hits_total", "Prompts whose beginning was found there.", n(e.prefix_hits));
  out += counter("gemma4_computed_tokens_total", "Rows of all forward passes.", n(e.computed_tokens));
  out += counter("gemma4_generated_tokens_total", "Tokens of answers.", n(e.generated_tokens));
  if (e.drafts.wanted) out += drafts(e.drafts);
  out += counter("gemma4_images_total", "Images in prompts.", n(e.images));
  out += counter("gemma4_images_encoded_total", "Of those: not found in the prefix cache.", n(e.images_encoded));
  out += counter("gemma4_steps_total", "Forward passes.", n(e.steps));
  out += counter("gemma4_slow_steps_total", "Steps that took longer than --step-timeout.", n(e.slow_steps));
  out += gauge("gemma4_prepared_bytes", "Memory of pictures of prompts that wait.", n(e.prepared_bytes));
  out += counter("gemma4_forward_seconds_total", "Time in forward passes.", e.forward_ms / 1000);
  out += counter("gemma4_image_seconds_total", "Time in the vision tower.", e.image_ms / 1000);
  out += pages("gemma4_kv_pages", "Pages of the key-value cache.", e.pages_total);
  out += pages("gemma4_kv_pages_used", "Of those: held by running prompts.", e.pages_used);
  out += pages("gemma4_kv_pages_cached", "Of those: kept for prompts that begin alike.", e.pages_cached);
  out += gauge("gemma4_memory_bytes", "Memory allocated on the backend.", n(e.memory_bytes));
  out += gauge("gemma4_connections", "Open HTTP connections.", http.connections);
  out += counter("gemma4_connections_total", "HTTP connections accepted.", n(http.accepted));
  out += counter("gemma4_connections_refused_total", "Of those: turned away, too many were open.", n(http.turned_away));
  out += counter("gemma4_connections_dropped_total", "Waiting ones closed for new ones.", n(http.dropped));
  out +=
      counter("gemma4_preparations_total", "Requests that had a turn to be read and prepared.", n(preparations.load()));
  out += gauge("gemma4_streams", "Answers being streamed.", streams);
  out += first_token.text("gemma4_time_to_first_token_seconds", "From a prompt's arrival to its first token.");
  out +=
      between_pieces.text("gemma4_inter_token_seconds", "Between two pieces of one answer, as the engine makes them.");
  out += whole_request.text("gemma4_request_seconds", "From a prompt's arrival to the end of its answer.");
  return out;
}

}  // namespace gemma4
