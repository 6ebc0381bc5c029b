# Writes OUTPUT, a C++ file that defines gemma4::page_files() (src/server/page.h) with the files of FOLDER.
set(types .html text/html .js text/javascript .css text/css .svg image/svg+xml)
set(arrays "")
set(rows "")
file(GLOB files ${FOLDER}/*)
list(SORT files)
set(index 0)
foreach(file ${files})
  get_filename_component(name ${file} NAME)
  get_filename_component(extension ${file} LAST_EXT)
  list(FIND types ${extension} at)
  if(at LESS 0)
    message(FATAL_ERROR "${file}: no content type is known for ${extension}")
  endif()
  math(EXPR at "${at} + 1")
  list(GET types ${at} type)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND arrays "const unsigned char kFile${index}[] = {${bytes}0};\n")
  set(path "/${name}")
  if(name STREQUAL "index.html")
    set(path "/")
  endif()
  string(APPEND rows "    {\"${path}\", \"${type}\", view(kFile${index}, sizeof(kFile${index}) - 1)},\n")
  math(EXPR index "${index} + 1")
endforeach()
file(WRITE ${OUTPUT}.new "// Made from ${FOLDER} by cmake/embed.cmake.
#include \"server/page.h\"

namespace gemma4 {
namespace {

${arrays}
std::string_view view(const unsigned char* bytes, size_t size) { return {reinterpret_cast<const char*>(bytes), size}; }

}  // namespace

std::span<const PageFile> page_files() {
  static const PageFile files[] = {
${rows}  };
  return files;
}

}  // namespace gemma4
")
file(RENAME ${OUTPUT}.new ${OUTPUT})
