#include "server/curl.h"

#include <curl/curl.h>
#include <dlfcn.h>

#include <csignal>
#include <cstdlib>
#include <memory>

#include "base/check.h"

// Under optimisation GCC turns the names of these two functions into macros that check their arguments.
#undef curl_easy_setopt
#undef curl_easy_getinfo

namespace gemma4 {
namespace {

template <class Function>
Function* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) throw Error(std::string("libcurl has no ") + name + "; install a newer one (libcurl4)");
  return reinterpret_cast<Function*>(found);
}

// What happens to the body while it comes.
struct Receiver {
  const CurlRequest& request;
  std::function<int()> status;
};

size_t receive(char* data, size_t one, size_t count, void* user) {
  const auto& receiver = *static_cast<Receiver*>(user);
  const bool goes_on = receiver.status() == 200 && receiver.request.accept({data, one * count});
  return goes_on ? one * count : 0;  // another number than it was given ends the transfer
}

}  // namespace

Curl::Curl(const char* library) : library_(dlopen(library, RTLD_NOW | RTLD_LOCAL)) {
  if (library_ == nullptr) {
    throw Error(std::string("image URLs need ") + library + ", which this machine does not have; install libcurl4 " +
                "(Fedora: libcurl) or leave out --allow-image-host");
  }
  if (symbol<decltype(curl_global_init)>(library_, "curl_global_init")(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
    throw Error("libcurl could not be initialised");
  }
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL may write to a peer that has closed; that must not end the process
}

CurlAnswer Curl::get(const CurlRequest& request) const {
  auto* set = symbol<decltype(curl_easy_setopt)>(library_, "curl_easy_setopt");
  auto* info = symbol<decltype(curl_easy_getinfo)>(library_, "curl_easy_getinfo");
  auto* append = symbol<decltype(curl_slist_append)>(library_, "curl_slist_append");
  auto* free_list = symbol<decltype(curl_slist_free_all)>(library_, "curl_slist_free_all");
  const std::unique_ptr<CURL, decltype(curl_easy_cleanup)*> owned(
      symbol<decltype(curl_easy_init)>(library_, "curl_easy_init")(),
      symbol<decltype(curl_easy_cleanup)>(library_, "curl_easy_cleanup"));
  CURL* handle = owned.get();
  if (handle == nullptr) return {.error = "libcurl could not begin"};

  // "::ADDRESS:": any host and port go to this address, at their own port, and no name is looked up.
  const bool v6 = request.address.find(':') != std::string::npos;
  const std::string to = "::" + (v6 ? "[" + request.address + "]" : request.address) + ":";
  const std::unique_ptr<curl_slist, decltype(free_list)> connect_to(append(nullptr, to.c_str()), free_list);
  const std::unique_ptr<curl_slist, decltype(free_list)> headers(append(nullptr, "Accept: image/*"), free_list);
  Receiver receiver{request, [&] {
                      long status = 0;
                      info(handle, CURLINFO_RESPONSE_CODE, &status);
                      return static_cast<int>(status);
                    }};
  set(handle, CURLOPT_URL, request.url.c_str());
  set(handle, CURLOPT_PATH_AS_IS, 1L);
  set(handle, CURLOPT_CONNECT_TO, connect_to.get());
  set(handle, CURLOPT_PROXY, "");  // not even one that the environment names: it would look up the host itself
  set(handle, CURLOPT_HTTPHEADER, headers.get());
  set(handle, CURLOPT_USERAGENT, "gemma4");
  set(handle, CURLOPT_FOLLOWLOCATION, 0L);
  set(handle, CURLOPT_NOSIGNAL, 1L);  // without it time limits raise SIGALRM, which no thread may
  set(handle, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(request.connect_seconds * 1000));
  set(handle, CURLOPT_TIMEOUT_MS, static_cast<long>(request.seconds * 1000));
  set(handle, CURLOPT_WRITEFUNCTION, receive);
  set(handle, CURLOPT_WRITEDATA, &receiver);
  if (const char* file = std::getenv("SSL_CERT_FILE"); file != nullptr) set(handle, CURLOPT_CAINFO, file);

  const CURLcode code = symbol<decltype(curl_easy_perform)>(library_, "curl_easy_perform")(handle);
  CurlAnswer answer;
  answer.status = receiver.status();
  answer.timed_out = code == CURLE_OPERATION_TIMEDOUT;
  if (code != CURLE_OK) answer.error = symbol<decltype(curl_easy_strerror)>(library_, "curl_easy_strerror")(code);
  return answer;
}

const Curl& system_curl() {
  static const Curl curl;
  return curl;
}

}  // namespace gemma4
