// The server process of `gemma4 serve`: signals, and the order of stopping.
#pragma once

#include "engine/engine.h"
#include "server/server.h"

namespace gemma4 {

// Blocks SIGINT and SIGTERM, so that only serve_until_stopped() receives them. Call it before any thread starts.
void block_stop_signals();

// Prints the address to standard output and serves until a signal comes. Then running answers have `grace` seconds to
// finish. Returns an exit code. Throws DeviceError if the device failed, after every client got an error, and Error if
// it cannot listen. `channel`: to the processes of the other ranks, or null; when a signal has come, a rank that does
// not answer is waited for a few seconds only.
int serve_until_stopped(Engine& engine, const ServerOptions& options, double grace, ControlChannel* channel = nullptr);

}  // namespace gemma4
