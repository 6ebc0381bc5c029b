# Writes OUTPUT, a C++ file that defines gemma4::page_files() (src/server/page.h). MANIFEST has a line "address|file" for
# each. The assembler copies the files, which takes it no time; as numbers in an array, megabytes take a compiler minutes.
set(types .html text/html .js text/javascript .css text/css .svg image/svg+xml .woff2 font/woff2 .txt text/plain)
set(bytes "")
set(names "")
set(rows "")
file(STRINGS ${MANIFEST} lines)
set(index 0)
foreach(line ${lines})
  string(REGEX REPLACE "\\|.*" "" address "${line}")
  string(REGEX REPLACE "^[^|]*\\|" "" file "${line}")
  get_filename_component(extension ${file} LAST_EXT)
  list(FIND types ${extension} at)
  if(at LESS 0)
    message(FATAL_ERROR "${file}: no content type is known for ${extension}")
  endif()
  math(EXPR at "${at} + 1")
  list(GET types ${at} type)
  set(symbol gemma4_page_${index})
  foreach(name ${symbol} ${symbol}_end)
    string(APPEND bytes "    \".globl ${name}\\n.hidden ${name}\\n\"\n")
  endforeach()
  string(APPEND bytes "    \"${symbol}:\\n.incbin \\\"${file}\\\"\\n${symbol}_end:\\n.byte 0\\n\"\n")
  string(APPEND names "extern const char ${symbol}[], ${symbol}_end[];\n")
  string(APPEND rows "      {\"${address}\", \"${type}\", view(${symbol}, ${symbol}_end)},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT} "// Made from ${MANIFEST} by cmake/embed.cmake.
#include \"server/page.h\"

asm(\".section .rodata\\n\"
${bytes}    \".previous\\n\");

extern \"C\" {
${names}}

namespace gemma4 {

static std::string_view view(const char* from, const char* to) { return {from, static_cast<size_t>(to - from)}; }

std::span<const PageFile> page_files() {
  static const PageFile files[] = {
${rows}  };
  return files;
}

}  // namespace gemma4
")
