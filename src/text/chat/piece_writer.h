// PieceWriter: builds the pieces of a prompt. Neighbouring texts become one piece, so that BPE can merge across them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/chat/chat.h"

namespace gemma4 {

class PieceWriter {
 public:
  explicit PieceWriter(const char* null_word = "null") : null_word_(null_word) {}  // how a JSON null is written
  const char* null_word() const { return null_word_; }
  void text(std::string_view text) {
    if (text.empty()) return;
    if (pieces_.empty() || pieces_.back().type != Piece::kText) pieces_.push_back({Piece::kText, ""});
    pieces_.back().text += text;
  }
  void control(std::string_view name) { pieces_.push_back({Piece::kControl, std::string(name)}); }
  void image(int index) { pieces_.push_back({Piece::kImage, "", index}); }
  void quoted(std::string_view string) {
    control("<|\"|>");
    text(string);
    control("<|\"|>");
  }
  void append(const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) {
      if (piece.type == Piece::kText) {
        text(piece.text);
      } else {
        pieces_.push_back(piece);
      }
    }
  }
  bool empty() const { return pieces_.empty(); }
  std::vector<Piece> take() { return std::move(pieces_); }

 private:
  const char* null_word_;
  std::vector<Piece> pieces_;
};

}  // namespace gemma4
