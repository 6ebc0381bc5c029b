#include "text/schema/formats.h"

#include <map>

namespace gemma4 {
namespace {

using Formats = std::map<std::string, std::string>;

// RFC 3339. Years 0001 to 9999, as libraries' dates have them; leap years are those of the Gregorian calendar.
void add_times(Formats& formats) {
  const std::string year = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)";
  const std::string day =
      "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))";
  const std::string fourth = "(0[48]|[2468][048]|[13579][26])";
  const std::string date = "(" + year + "-" + day + "|([0-9]{2}" + fourth + "|" + fourth + "00)-02-29)";
  const std::string time =
      "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
  formats["date"] = date;
  formats["time"] = time;
  formats["date-time"] = date + "T" + time;
  const std::string n = "[0-9]{1,9}";
  const std::string clock = "T(" + n + "H(" + n + "M(" + n + "S)?)?|" + n + "M(" + n + "S)?|" + n + "S)";
  const std::string days = "(" + n + "Y(" + n + "M(" + n + "D)?)?|" + n + "M(" + n + "D)?|" + n + "D)";
  formats["duration"] = "P(" + days + "(" + clock + ")?|" + clock + "|" + n + "W)";
}

void add_hosts(Formats& formats, bool loose) {
  const std::string byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  const std::string word = "[A-Za-z0-9]",
                    label = loose ? word + "+(-+" + word + "+)*" : word + "([A-Za-z0-9-]{0,61}" + word + ")?";
  const std::string host = label + "(\\." + label + ")" + (loose ? "*" : "{0,8}");
  const std::string h = "[0-9a-fA-F]{1,4}";
  const auto groups = [&](int most) { return "(:" + h + "){1," + std::to_string(most) + "}"; };
  std::string ipv6 = "(" + h + ":){7}" + h + "|(" + h + ":){1,7}:|:(" + groups(7) + "|:)";
  for (int before = 1; before <= 6; ++before) {
    ipv6 += "|(" + h + ":){1," + std::to_string(before) + "}" + groups(7 - before);
  }
  formats["ipv4"] = byte + "(\\." + byte + "){3}";
  formats["ipv6"] = ipv6;
  formats["hostname"] = host;
  const std::string in_local = "[A-Za-z0-9_+-]";
  formats["email"] = loose ? in_local + "+(\\." + in_local + "+)*@(" + label + "\\.)+[A-Za-z]{2,}"
                           : in_local + "{1,32}(\\." + in_local + "{1,10}){0,3}@(" + label + "\\.){1,4}[A-Za-z]{2,24}";
  const std::string rest = "[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}";
  const std::string path = "(/(" + rest + ")*)?(\\?(" + rest + "|\\?)*)?(#(" + rest + "|\\?)*)?";
  const std::string user = loose ? "" : "([A-Za-z0-9._~-]{1,60}(:[A-Za-z0-9._~-]{1,60})?@)?";
  formats["uri"] = "[a-z][a-z0-9+.-]" + std::string(loose ? "+" : "{1,30}") + "://" + user + host +
                   "(:[1-9][0-9]{0,3})?" + path + "|(mailto|urn|tel|data):(" + rest + ")+";
}

Formats make_formats(FormatUse use) {
  Formats formats;
  add_times(formats);
  add_hosts(formats, use != FormatUse::kAlone);
  const std::string hex = "[0-9a-fA-F]";
  formats["uuid"] = hex + "{8}-" + hex + "{4}-" + hex + "{4}-" + hex + "{4}-" + hex + "{12}";
  for (const std::string version : {"1", "3", "4", "5", "6", "7", "8"}) {  // RFC 9562
    formats["uuid" + version] =
        hex + "{8}-" + hex + "{4}-" + version + hex + "{3}-[89abAB]" + hex + "{3}-" + hex + "{12}";
  }
  if (use == FormatUse::kCheck) {
    formats["email"] = "[^\\s@]+@[^\\s@]+";
    formats["uri"] = "[A-Za-z][A-Za-z0-9+.-]*:[^\\s<>\"{}|\\\\^`]*";
    formats["hostname"] = "[A-Za-z0-9-]+(\\.[A-Za-z0-9-]+)*\\.?";
    formats["duration"] = "P[0-9.,YMWDTHS]+";
  }
  formats["json-pointer"] = "(/([^~/]|~[01])*)*";
  for (auto& [name, pattern] : formats) pattern = "^(" + pattern + ")$";
  return formats;
}

const Formats& all_formats(FormatUse use) {
  static const Formats kAlone = make_formats(FormatUse::kAlone), kCombined = make_formats(FormatUse::kCombined),
                       kCheck = make_formats(FormatUse::kCheck);
  return use == FormatUse::kAlone ? kAlone : use == FormatUse::kCombined ? kCombined : kCheck;
}

}  // namespace

const std::string* format_pattern(const std::string& format, FormatUse use) {
  const auto found = all_formats(use).find(format);
  return found == all_formats(use).end() ? nullptr : &found->second;
}

std::vector<std::string> enforced_formats() {
  std::vector<std::string> names;
  for (const auto& [name, pattern] : all_formats(FormatUse::kAlone)) names.push_back(name);
  return names;
}

}  // namespace gemma4
