#include "base/json.h"

GEMMA4_JSON(template, nlohmann::basic_json<nlohmann::ordered_map>)
