// The parts of the runtime by themselves; the Python tests hold the same parts to Python.
#include <string>

#include "engine/weights.h"
#include "runtime/error.h"
#include "runtime/image.h"
#include "runtime/json.h"
#include "runtime/policy.h"
#include "runtime/random.h"
#include "runtime/rope.h"
#include "runtime/sampling.h"
#include "runtime/sha256.h"
#include "runtime/template.h"
#include "runtime/text_stream.h"
#include "runtime/tokenizer.h"
#include "tests/check.h"

namespace {

using namespace latrt;

// The E_NAME that `function` throws, "" if none.
template <class F>
std::string refusal(F&& function) {
    try {
        function();
    } catch (const Error& error) {
        return error.name();
    } catch (const JsonError&) {
        return "json";
    }
    return "";
}

}  // namespace

TEST(runtime_json_reads_values) {
    const Json json =
        Json::parse(R"( {"a": [1, -2.5e1, true, null], "b": "\u00e9\ud83d\ude00\n"} )");
    const auto& a = json.at("a").array();
    CHECK(a[0].integer() == 1 && a[1].number() == -25 && a[2].boolean() && a[3].is_null());
    CHECK(json.at("b").string() == "\u00e9\U0001F600\n");
    CHECK(!json.find("c"));
    CHECK(json_quote("a\"\\\n") == "\"a\\\"\\\\\\u000a\"");
}

TEST(runtime_json_refuses_what_is_none) {
    for (const char* bad :
         {"", "{", "[1,]", "{\"a\":1,\"a\":2}", "01", "1e999", "NaN", "\"\\ud800\"", "\"\n\"",
          "[1] 2", "\"\\x\"", "{1:2}", "\xff", "\"", "-", "1.", "tru", "\"\\u12\"", "{\"a\" 1}"}) {
        CHECK(refusal([&] { Json::parse(bad); }) == "json");
    }
    CHECK(refusal([] { Json::parse(std::string(101, '[') + std::string(101, ']')); }) == "json");
    CHECK(refusal([] { Json::parse(std::string(1 << 20, '[')); }) == "json");
    CHECK(refusal([] { Json::parse(std::string(100, '[') + std::string(100, ']')); }).empty());
    CHECK(refusal([] { Json::parse("{}").at("x"); }) == "json");
    CHECK(refusal([] { Json::parse("1.5").integer(); }) == "json");
}

TEST(runtime_sha256_of_known_texts) {
    if (!Sha256::has_instructions()) std::printf("skipped: no SHA instructions here\n");
    const auto of = [](const std::string& text, bool instructions, size_t piece) {
        Sha256 hash(instructions);
        for (size_t at = 0; at < text.size(); at += piece) {
            const std::string part = text.substr(at, piece);
            hash.update(part.data(), part.size());
        }
        return hash.finish();
    };
    // FIPS 180-4's examples, and messages of several blocks.
    for (const bool fast : {false, true}) {
        CHECK(of("", fast, 37) ==
              "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        CHECK(of("abc", fast, 37) ==
              "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        CHECK(of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", fast, 37) ==
              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
        CHECK(of(std::string(1000, 'a'), fast, 37) ==
              "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3");
        CHECK(of(std::string(1000000, 'a'), fast, 4097) ==
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }
    test::Random random(1);
    std::string text;
    for (int size = 0; size <= 300; ++size, text += static_cast<char>(random.bits())) {
        const std::string want = of(text, false, 64);
        CHECK(of(text, true, 1000) == want && of(text, true, 65) == want);
    }
}

TEST(runtime_unicode_comes_back) {
    const std::string text = "a\u00e9\u4f60\U0001F600";
    CHECK(encode_utf8(decode_utf8(text)) == text);
    for (const char* bad : {"\x80", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe4\xbd"}) {
        CHECK(refusal([&] { decode_utf8(bad); }) == "E_TEXT");
    }
    CHECK(nfc(U"e\u0301") == U"\u00e9" && nfc(U"\u1100\u1161\u11a8") == U"\uac01");
    CHECK(nfc(U"a\u0301\u0323") == U"\u1ea1\u0301");  // marks in the order of their classes
    CHECK(nfc(std::u32string(50000, U'\u0301')).size() == 50000);
    Utf8Stream stream;
    CHECK(stream.push("\xf0\x9f") == "" && stream.push("\x98\x80x\xff") == "\U0001F600x\ufffd");
    CHECK(stream.push("\xe4\xbd") == "" && stream.finish() == "\ufffd" && stream.finish() == "");
}

TEST(runtime_patterns_split_text) {
    const auto pieces = [](std::u32string_view pattern, std::u32string_view text) {
        std::string out;
        size_t start = 0;
        for (const size_t end : Pattern(pattern).split(text)) {
            out += encode_utf8(text.substr(start, end - start)) + "|";
            start = end;
        }
        return out;
    };
    CHECK(pieces(U"\\s+(?!\\S)|\\s+", U"a   b") == "a|  | |b|");
    CHECK(pieces(U"(?i:'s|'LL)|[a-c]{2,3}", U"'S'lLabcab") == "'S|'lL|abc|ab|");
    CHECK(pieces(U"[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}", U" ab12!c") == " ab|1|2|!c|");
    for (const char32_t* bad : {U"(a", U"a**", U"\\d", U"(a)+", U"[b-a]", U"(?<=a)", U"a{3,1}",
                                U"[a", U".", U"\\", U"\\p{Lu}", U"a)", U"(?!ab)"}) {
        CHECK(refusal([&] { Pattern{std::u32string_view(bad)}; }) == "E_TOKENIZER");
    }
}

TEST(runtime_random_is_numpys) {
    // numpy.random.default_rng([7, 2]): random(), random(); then permutation(6) of [7, 2, 1].
    Random random({7, 2});
    const double first = random.uniform(), second = random.uniform();
    CHECK(first == 0x1.1ca43ddd2012cp-2 && second == 0x1.c7d638749c868p-2);
    const std::vector<int64_t> want = {2, 4, 5, 1, 3, 0};
    CHECK(Random({7, 2, 1}).permutation(6) == want);
}

TEST(runtime_sampler_follows_its_settings) {
    const std::vector<float> logits = {0, 3, 1, 3, -1};
    CHECK(Sampler({}, {}, 0).draw(logits, -1) == 1);
    CHECK(Sampler({}, {}, 0).draw(logits, 1) == 3);
    SamplingParams penalty;
    penalty.repetition_penalty = 4;
    CHECK(Sampler(penalty, {1, 3}, 0).draw(logits, -1) == 2);
    SamplingParams hot;
    hot.temperature = 1, hot.top_k = 2;
    Sampler sampler(hot, {}, 0);
    for (int i = 0; i < 50; ++i) CHECK(sampler.draw(logits, -1) % 2 == 1);
    hot.top_k = 0, hot.top_p = 0.1;
    CHECK(Sampler(hot, {}, 0).draw(logits, -1) == 1);
    hot.top_p = 0;
    CHECK(refusal([&] { hot.check(); }) == "E_SAMPLING");
}

TEST(runtime_policies_choose) {
    Random random({1});
    const Policy route = Policy::preset("route");
    const std::vector<int64_t> want = {1, 3};
    CHECK(select_tokens(route, 4, {{0, 2, 1, 2}, {0, 2, 1, 2}}, {}, random) == want);
    CHECK(select_tokens(route, 4, {}, {0, 5, 1, 2}, random) == want);
    Policy seven = route;
    seven.percent = 7;
    CHECK(seven.num_selected(100) == 7 && seven.num_selected(101) == 8);
    CHECK(!Policy::preset("never").injects() && !Policy::preset("text").injects());
    CHECK(refusal([] { Policy::preset("nothing"); }) == "E_POLICY");
}

TEST(runtime_images_become_patches) {
    ImageConfig config;
    config.min_pixels = 28 * 28, config.max_pixels = 56 * 56;
    const Size size = smart_resize({100, 70}, config);
    CHECK(size.height == 56 && size.width == 28);
    CHECK(refusal([&] { smart_resize({1, 201}, config); }) == "E_IMAGE_ASPECT");
    std::vector<uint8_t> grey(100 * 80 * 3, 77);  // rows with room at their ends
    const Patches patches = preprocess({grey.data(), 70, 100, 240}, config);
    CHECK(patches.grid_h == 4 && patches.grid_w == 2);
    CHECK(patches.pixel_values.size() == 8 * 1176);
    const float red = 77 / 255.0f - 0.48145466f;
    CHECK(std::fabs(patches.pixel_values[0] - red / 0.26862954f) < 1e-6f);
}

TEST(runtime_positions_of_copies) {
    const std::vector<Grid> grids = {{4, 6}, {2, 2}};
    int64_t next = 10;
    const Positions all = injection_positions(grids, 2, {1, 5, 6}, next);
    const std::vector<int64_t> rows = {10, 11, 13}, cols = {11, 12, 13};
    CHECK(all[1] == rows && all[2] == cols && next == 14);
    next = 0;
    const std::vector<int64_t> times = {0, 1, 1, 1, 1, 1, 1, 4},
                               visual = {-1, 0, 1, 2, 3, 4, 5, -1};
    CHECK(prompt_positions(visual, {{4, 6}}, 2, next)[0] == times && next == 5);
}

TEST(runtime_text_holds_back_stop_strings) {
    TextStream stream({"END", "EX"});
    CHECK(stream.push("abE") == "ab" && stream.push("N") == "" && stream.push("!E") == "EN!");
    CHECK(stream.push("NDx") == "" && stream.stopped() && stream.text() == "abEN!");
    TextStream open({"END"});
    CHECK(open.push("xEN") == "x" && open.flush() == "EN" && open.text() == "xEN");
    CHECK(conclusion("<CONCLUSION>a</CONCLUSION><CONCLUSION>\u00a0b </CONCLUSION>") == "b");
    CHECK(conclusion("<CONCLUSION>a<SUMMARY>b</CONCLUSION>").empty());
}

TEST(runtime_templates_render) {
    using Value = TemplateValue;
    const Value::List messages = {Value::Mapping{{"role", "user"}, {"content", "hi"}}};
    const auto render = [&](const std::string& source) {
        return ChatTemplate(source).render({{"messages", messages}, {"flag", true}});
    };
    CHECK(render(kDefaultTemplate) ==
          "<|im_start|>system\nYou are a helpful "
          "assistant.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
    CHECK(render("{%- set ns = namespace(n=1) -%} {% for m in messages %}{% set ns.n = ns.n + 2 %}"
                 "{% endfor %}{{ ns.n }}") == "3");
    CHECK(render("{{ 'a' if flag and not x is defined else 'b' }}{{ messages[0].role ~ 1 }}") ==
          "auser1");
    CHECK(render("{{ ' q ' | trim }}{{ messages | length }}{{ messages[-1]['content'] }}") ==
          "q1hi");
    for (const char* bad :
         {"{% if %}", "{% for x in %}{% endfor %}", "{{ 1", "{% macro x() %}", "{{ a.b }}",
          "{% if a %}", "{% endif %}", "{{ x() }}", "{{ messages }}", "{% if 1 %}{% endif x %}",
          "{% for a in [] %}{% endfor 1 %}", "{{ 'a' }"}) {
        CHECK(refusal([&] { render(bad); }) == "E_TEMPLATE");
    }
    CHECK(refusal([&] { render("{{ raise_exception('no') }}"); }) == "E_MESSAGES");
    CHECK(refusal([&] { render(std::string(500, '(')); }).empty());
    CHECK(refusal([&] { render("{{ " + std::string(500, '(') + "1"); }) == "E_TEMPLATE");
    std::string loops = "x";
    for (int i = 0; i < 40; ++i) loops = "{% for a in [1, 2, 3] %}" + loops + "{% endfor %}";
    CHECK(refusal([&] { render(loops); }) == "E_TEMPLATE");
}

TEST(runtime_templates_are_bounded) {
    using Value = TemplateValue;
    const auto many = [](const std::string& part, int count) {
        std::string out;
        while (count-- > 0) out += part;
        return out;
    };
    std::string user = "hi";
    const auto outcome = [&](const std::string& source) {
        const Value::List messages = {Value::Mapping{{"role", "user"}, {"content", user}}};
        return refusal([&] { ChatTemplate(source).render({{"messages", messages}}); });
    };
    const auto refused = [&](const std::string& source) {
        if (outcome(source) != "E_TEMPLATE") test::fail(__FILE__, __LINE__, source.substr(0, 200));
    };
    CHECK(outcome("{{ 'a'" + many(" + 'a'", 500) + many("}}{{ 'a' ~ 'b'", 500) + " }}").empty());
    for (const char* part : {" + 'a'", " ~ 1", "|trim", ".x", " or 0", " is not none", "[0]"})
        refused("{{ x" + many(part, 5000) + " }}");
    const std::string text = "{% set x = 'aaaaaaaaaaaaaaaa' %}";
    for (const char* part : {"{% set x = x ~ x %}", "{% set x = x + x %}"}) {
        CHECK(outcome(text + many(part, 15) + "{{ x }}").empty());  // half a million characters
        refused(text + many(part, 17));
        refused(text + many(part, 24));
        refused(text + many(part, 15) + "{% set y = x.split('a') %}");
        refused(text + many(part, 15) + "{% set y = [x, x, x] %}");
        refused(text + many(part, 15) + "{{ x }}{{ x }}{{ x }}");
        refused(text + many(part, 15) + "{% set y = x ~ 'b' %}{% if y in x %}{% endif %}");
    }
    std::string kept = text + many("{% set x = x ~ x %}", 15);  // all small enough, but many
    for (int i = 0; i < 50; ++i) kept += "{% set x" + std::to_string(i) + " = x ~ 'b' %}";
    refused(kept);
    refused("{% set x = [1] %}" + many("{% set x = [x, x] %}", 24));
    const std::string numbers = "[0" + many(",0", 1999) + "]";
    const std::string loop = "{% for a in x %}", end = "{% endfor %}";
    refused("{% set x = " + numbers + " %}" + many(loop, 4) + many(end, 4));
    refused("{% set n = namespace(v=1) %}{% for a in " + numbers + " %}{% set n.v = [n.v] %}" +
            end);
    refused("{% set n = namespace() %}{% set n.v = [n] %}");
    refused("{% set n = namespace() %}{% set m = namespace(v=n) %}{% set n.v = m %}");
    CHECK(outcome("{% set n = namespace() %}{% set n.v = messages %}{{ n.v[0].role }}").empty());
    user = std::string(3000000, 'x');  // more text may be written when more came in
    CHECK(outcome(kDefaultTemplate).empty());
}

TEST(runtime_weights_refuse_sizes_that_overflow) {
    const auto why = [](auto&& function) {
        try {
            function();
        } catch (const std::invalid_argument& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    const auto decoder = [&](auto&& set) {
        DecoderConfig c = {100, 128, 256, 2, 4, 2, 64, 1e-6f, KvType::f32};
        set(c);
        return why([&] { Weights({}).decoder(c); });
    };
    const auto vision = [&](auto&& set) {
        VisionConfig c = {128, 256, 4, 32, 1176, 4, 128};
        set(c);
        return why([&] { Weights({}).vision(c, {true}); });
    };
    const auto sizes = [](const std::string& text) { return text.find("sizes") == 0; };
    CHECK(decoder([](auto&) {}) == "model.embed_tokens.weight: missing");
    CHECK(vision([](auto&) {}) == "visual.patch_embed.proj.weight: missing");
    CHECK(sizes(decoder([](auto& c) { c.num_heads = 67108868; })));  // * 64 is 256 in 32 bits
    CHECK(sizes(decoder([](auto& c) { c.num_heads = 1 << 19; })));
    CHECK(sizes(decoder([](auto& c) { c.num_kv_heads = 0; })));
    CHECK(sizes(decoder([](auto& c) { c.num_kv_heads = 3; })));
    CHECK(sizes(decoder([](auto& c) { c.ffn = (1 << 30) + 128; })));
    CHECK(sizes(decoder([](auto& c) { c.vocab_size = (1 << 24) + 1; })));
    CHECK(sizes(decoder([](auto& c) { c.num_layers = 1025; })));
    CHECK(sizes(vision([](auto& c) { c.merge_unit = 1 << 25; })));
    CHECK(sizes(vision([](auto& c) { c.merge_unit = (1 << 13) + 1; })));
    CHECK(sizes(vision([](auto& c) { c.head_dim = 33; })));
    CHECK(sizes(vision([](auto& c) { c.width = -128; })));
}

TEST(runtime_tokenizers_that_are_not_supported) {
    for (const char* bad :
         {"{}", "[]", R"({"model": {"type": "WordPiece"}})",
          R"({"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": null})",
          R"({"added_tokens": [{"content": "", "id": 1}]})",
          R"({"added_tokens": [{"content": "a", "id": 1, "lstrip": true}]})",
          R"({"added_tokens": [{"content": "a", "id": 1}, {"content": "b", "id": 1}]})"}) {
        const std::string name = refusal([&] { Tokenizer{Json::parse(bad)}; });
        CHECK(name == "E_TOKENIZER");
    }
}
