// The commands of the program, one file each in commands/ (completion and man: shell/). argv[0] is the command's name.
// Each function returns an exit code of base/check.h or throws Error.
#pragma once

namespace gemma4 {

int run_command(int argc, char** argv);
int serve_command(int argc, char** argv);
int quantize_command(int argc, char** argv);
int inspect_command(int argc, char** argv);
int diff_command(int argc, char** argv);
int eval_command(int argc, char** argv);
int export_command(int argc, char** argv);
int bench_command(int argc, char** argv);
int synth_command(int argc, char** argv);
int completion_command(int argc, char** argv);
int man_command(int argc, char** argv);

}  // namespace gemma4
