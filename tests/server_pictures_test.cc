// Pictures of every format, and wherever a message may hold one, over real sockets with the demo model.
#include <gtest/gtest.h>

#include "image/golden_testing.h"
#include "serving_testing.h"

namespace gemma4 {
namespace {

const Json kAskNumber = {{"type", "text"}, {"text", "What number is written in the image?"}};

std::string number_in(const std::string& extension) {
  return base64(read_file(kRoot / ("tests/golden/image_corpus/shown/number." + extension)));
}

class PicturesTest : public ServerTest {
 protected:
  static Json shown(const std::string& url) {
    Json body = chat("");
    body["messages"][0]["content"] = {{{"type", "image_url"}, {"image_url", {{"url", url}}}}, kAskNumber};
    return body;
  }
  static std::string answer_about(const std::string& url) {
    return good("/v1/chat/completions", shown(url))["choices"][0]["message"]["content"];
  }
};

TEST_F(PicturesTest, GifAndBmp) {
  EXPECT_EQ(answer_about("data:image/bmp;base64," + number_in("bmp")), "6542");
  const std::string gif = "data:image/gif;base64," + number_in("gif");
  if (gif_is_read()) {
    EXPECT_EQ(answer_about(gif), "6542");
    return;
  }
  const Response response = post("/v1/chat/completions", shown(gif));
  EXPECT_EQ(response.status, 400);
  EXPECT_NE(response.body.find("the image is a GIF, which this program was built without"), std::string::npos);
}

TEST_F(PicturesTest, HeicAndAvif) {
  for (const char* extension : {"heic", "avif"}) {
    const Json body = shown("data:image/" + std::string(extension) + ";base64," + number_in(extension));
    const Response response = post("/v1/chat/completions", body);
    if (!heif_is_read()) {
      EXPECT_EQ(response.status, 400);
      EXPECT_NE(response.body.find("HEIC or AVIF, which this program was built without"), std::string::npos);
      continue;
    }
    ASSERT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(read_json<Json>(response.body)["choices"][0]["message"]["content"], "6542") << extension;
  }
}

TEST_F(PicturesTest, Base64Alone) {
  EXPECT_EQ(answer_about(number_in(gif_is_read() ? "gif" : "bmp")), "6542");
  EXPECT_EQ(answer_about(picture("000.png")), "6542");
  const Response response = post("/v1/chat/completions", shown("pictures/000.png"));
  EXPECT_EQ(response.status, 400);
  EXPECT_NE(response.body.find("data: URL"), std::string::npos) << response.body;
}

TEST_F(PicturesTest, InTheSystemMessage) {
  const std::string data = picture("000.png");
  Json body = chat("What number is written in the image?");
  Json system = {{"role", "system"}};
  system["content"] = Json::array({{{"type", "image_url"}, {"image_url", {{"url", "data:image/png;base64," + data}}}}});
  body["messages"].insert(body["messages"].begin(), system);
  const Json json = good("/v1/chat/completions", body);
  EXPECT_GT(json["usage"]["prompt_tokens_details"]["image_tokens"], 0);
  Json messages = chat("What number is written in the image?");
  messages["max_tokens"] = 20;
  const Json plain = good("/v1/messages/count_tokens", {{"model", "demo"}, {"messages", messages["messages"]}});
  const Json source = {{"type", "base64"}, {"media_type", "image/png"}, {"data", data}};
  messages["system"] = Json::array({{{"type", "image"}, {"source", source}}});
  const Json seen = good("/v1/messages", messages);
  EXPECT_GT(seen["usage"]["input_tokens"].get<int>(), plain["input_tokens"].get<int>() + 20);
}

}  // namespace
}  // namespace gemma4
