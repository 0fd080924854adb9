#include <algorithm>
#include <charconv>
#include <tuple>
#include <utility>

#include "runtime/error.h"
#include "runtime/template_nodes.h"

namespace latrt {
namespace {

constexpr size_t kMaxSource = 64 << 10;
constexpr int kMaxDepth = 60, kMaxOperators = 500;  // of statements, of an expression
constexpr std::string_view kSpace = " \t\r\n\f\v";

bool word_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

struct Token {
    enum class Kind { name, integer, string, symbol, end } kind;
    std::string text;
};

std::vector<Token> tokens_of(std::string_view code) {
    std::vector<Token> out;
    for (size_t at = 0; at < code.size();) {
        const char c = code[at];
        if (kSpace.find(c) != kSpace.npos) {
            ++at;
        } else if (word_char(c)) {
            const size_t start = at;
            while (at < code.size() && word_char(code[at])) ++at;
            const bool digit = c >= '0' && c <= '9';
            out.push_back({digit ? Token::Kind::integer : Token::Kind::name,
                           std::string(code.substr(start, at - start))});
        } else if (c == '\'' || c == '"') {
            std::string text;
            for (++at; at < code.size() && code[at] != c; ++at) {
                if (code[at] != '\\' || at + 1 == code.size()) {
                    text += code[at];
                    continue;
                }
                constexpr std::string_view kNames = "nrt\\'\"", kMeans = "\n\r\t\\'\"";
                const size_t known = kNames.find(code[++at]);
                if (known == kNames.npos) refuse_template("an unknown escape in a string");
                text += kMeans[known];
            }
            if (at++ == code.size()) refuse_template("a string that does not end");
            out.push_back({Token::Kind::string, text});
        } else {
            const std::string two(code.substr(at, 2));
            const bool wide = two == "==" || two == "!=" || two == "<=" || two == ">=";
            out.push_back({Token::Kind::symbol, wide ? two : std::string(1, c)});
            at += wide ? 2 : 1;
        }
    }
    out.push_back({Token::Kind::end, ""});
    return out;
}

using Expr = TemplateExpr;
using Op = Expr::Op;

class ExprParser {
 public:
    explicit ExprParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

    Expr expression() {
        if (++depth_ > kMaxDepth) refuse_template("an expression nested too deeply");
        Expr out = either();
        if (accept("if")) {
            Expr condition = either();
            Expr otherwise{Op::literal, "", TemplateValue(), {}};
            if (accept("else")) otherwise = expression();
            out = made(Op::choose, "", std::move(condition), std::move(out), std::move(otherwise));
        }
        --depth_;
        return out;
    }

    bool accept(std::string_view text) {
        if (now().text != text || now().kind == Token::Kind::string) return false;
        ++at_;
        return true;
    }

    void expect(std::string_view text) {
        if (!accept(text)) refuse_template("expected '" + std::string(text) + "'");
    }

    std::string name() {
        if (now().kind != Token::Kind::name) refuse_template("expected a name");
        return tokens_[at_++].text;
    }

    void finish() const {
        if (now().kind != Token::Kind::end)
            refuse_template("unexpected '" + now().text.substr(0, 40) + "'");
    }

 private:
    const Token& now() const { return tokens_[at_]; }

    // An operator over its operands, which are moved. A chain of them is as deep as it is long, so
    // their number bounds what parsing costs and the stack that evaluation takes.
    template <class... Args>
    Expr made(Op op, std::string name, Args... args) {
        if (++num_operators_ > kMaxOperators) refuse_template("an expression that is too long");
        Expr out{op, std::move(name), {}, {}};
        out.args.reserve(sizeof...(args));
        (out.args.push_back(std::move(args)), ...);
        return out;
    }

    Expr either() {
        Expr out = both();
        while (accept("or")) out = made(Op::either, "or", std::move(out), both());
        return out;
    }

    Expr both() {
        Expr out = inverted();
        while (accept("and")) out = made(Op::both, "and", std::move(out), inverted());
        return out;
    }

    Expr inverted() {
        if (!accept("not")) return comparison();
        if (++depth_ > kMaxDepth) refuse_template("an expression nested too deeply");
        Expr out = made(Op::invert, "not", inverted());
        --depth_;
        return out;
    }

    Expr comparison() {
        Expr out = sum();
        for (const char* symbol : {"==", "!=", "<=", ">=", "<", ">"}) {
            if (accept(symbol)) return made(Op::compare, symbol, std::move(out), sum());
        }
        if (accept("in")) return made(Op::inside, "in", std::move(out), sum());
        if (accept("not")) {
            expect("in");
            return made(Op::invert, "not", made(Op::inside, "in", std::move(out), sum()));
        }
        return out;
    }

    Expr sum() {
        Expr out = unary();
        while (true) {
            if (accept("+")) {
                out = made(Op::add, "+", std::move(out), unary());
            } else if (accept("-")) {
                out = made(Op::subtract, "-", std::move(out), unary());
            } else if (accept("~")) {
                out = made(Op::concat, "~", std::move(out), unary());
            } else {
                return out;
            }
        }
    }

    Expr unary() {
        if (!accept("-")) return postfix();
        return made(Op::negate, "-", postfix());
    }

    Expr postfix() {
        Expr out = primary();
        while (true) {
            if (accept(".")) {
                const std::string attribute = name();
                if (accept("(")) {
                    out = made(Op::method, attribute, std::move(out));
                    arguments(out);
                } else {
                    out = made(Op::get, attribute, std::move(out), text(attribute));
                }
            } else if (accept("[")) {
                out = subscript(std::move(out));
            } else if (accept("|")) {
                out = made(Op::filter, name(), std::move(out));
                if (accept("(")) arguments(out);
            } else if (accept("is")) {
                const bool inverse = accept("not");
                out = made(Op::test, name(), std::move(out));
                if (inverse) out = made(Op::invert, "not", std::move(out));
            } else {
                return out;
            }
        }
    }

    static Expr text(const std::string& value) { return {Op::literal, "", value, {}}; }

    Expr subscript(Expr base) {
        Expr first{Op::literal, "", TemplateValue::none(), {}}, last = first;
        const bool open = now().text == ":" && now().kind == Token::Kind::symbol;
        if (!open) first = expression();
        if (accept("]")) return made(Op::get, "", std::move(base), std::move(first));
        expect(":");
        if (!accept("]")) {
            last = expression();
            expect("]");
        }
        return made(Op::slice, "", std::move(base), std::move(first), std::move(last));
    }

    void arguments(Expr& call) {
        while (!accept(")")) {
            const bool keyword = now().kind == Token::Kind::name && tokens_[at_ + 1].text == "=" &&
                                 tokens_[at_ + 1].kind == Token::Kind::symbol;
            if (keyword) {
                call.keywords.push_back(name());
                expect("=");
            } else if (!call.keywords.empty()) {
                refuse_template("a positional argument after one by name");
            }
            call.args.push_back(expression());
            if (!accept(",") && now().text != ")") refuse_template("expected ')'");
        }
    }

    Expr primary() {
        const Token token = now();
        if (token.kind == Token::Kind::end) refuse_template("an expression that is not there");
        ++at_;
        if (token.kind == Token::Kind::string) return text(token.text);
        if (token.kind == Token::Kind::integer) {
            int64_t value = 0;
            const char* end = token.text.data() + token.text.size();
            if (std::from_chars(token.text.data(), end, value).ptr != end || value > 1 << 30)
                refuse_template("number " + token.text.substr(0, 40));
            return {Op::literal, "", value, {}};
        }
        if (token.kind == Token::Kind::name) {
            if (token.text == "true" || token.text == "True") return {Op::literal, "", true, {}};
            if (token.text == "false" || token.text == "False") return {Op::literal, "", false, {}};
            if (token.text == "none" || token.text == "None")
                return {Op::literal, "", TemplateValue::none(), {}};
            if (!accept("(")) return {Op::name, token.text, {}, {}};
            Expr call = made(Op::call, token.text);
            arguments(call);
            return call;
        }
        if (token.text == "(") {
            Expr out = expression();
            expect(")");
            return out;
        }
        if (token.text != "[") refuse_template("unexpected '" + token.text + "'");
        Expr list = made(Op::list, "");
        while (!accept("]")) {
            list.args.push_back(expression());
            if (!accept(",") && now().text != "]") refuse_template("expected ']'");
        }
        return list;
    }

    std::vector<Token> tokens_;
    size_t at_ = 0;
    int depth_ = 0, num_operators_ = 0;
};

// A tag or a text of the source, whitespace control already applied.
struct Part {
    char kind;  // 't' text, '{' output, '%' statement
    std::string text;
};

size_t end_of_tag(const std::string& source, size_t at, const char* close) {
    char quote = 0;
    for (; at + 1 < source.size(); ++at) {
        if (quote) {
            if (source[at] == '\\')
                ++at;
            else if (source[at] == quote)
                quote = 0;
        } else if (close[0] != '#' && (source[at] == '\'' || source[at] == '"')) {
            quote = source[at];
        } else if (source[at] == close[0] && source[at + 1] == '}') {
            return at;
        }
    }
    refuse_template("a tag that does not end");
}

std::vector<Part> parts_of(std::string source) {
    if (!source.empty() && source.back() == '\n') source.pop_back();
    std::vector<Part> out;
    std::string text;
    for (size_t at = 0; at < source.size();) {
        const char kind = source[at] == '{' && at + 1 < source.size() ? source[at + 1] : 0;
        if (kind != '{' && kind != '%' && kind != '#') {
            text += source[at++];
            continue;
        }
        const char sign = at + 2 < source.size() ? source[at + 2] : 0;
        if (sign == '-') {
            text.erase(text.find_last_not_of(kSpace) + 1);
        } else if (kind != '{' && sign != '+') {  // lstrip_blocks
            const size_t line = text.find_last_not_of(" \t") + 1, begin = at - text.size();
            if (line ? text[line - 1] == '\n' : begin == 0 || source[begin - 1] == '\n')
                text.erase(line);
        }
        const size_t start = at + 2 + (sign == '-' || sign == '+');
        const char close[] = {kind == '{' ? '}' : kind, 0};
        const size_t end = end_of_tag(source, start, close);
        const bool trims = end > start && source[end - 1] == '-';
        const bool keeps = end > start && source[end - 1] == '+';
        if (!text.empty()) out.push_back({'t', text});
        text.clear();
        if (kind != '#')
            out.push_back({kind, source.substr(start, end - start - (trims || keeps))});
        at = end + 2;
        if (trims) {
            at = std::min(source.find_first_not_of(kSpace, at), source.size());
        } else if (kind != '{' && !keeps && at < source.size() && source[at] == '\n') {
            ++at;  // trim_blocks
        }
    }
    if (!text.empty()) out.push_back({'t', text});
    return out;
}

class TemplateParser {
 public:
    explicit TemplateParser(std::vector<Part> parts) : parts_(std::move(parts)) {}

    std::vector<TemplateNode> parse() {
        std::vector<TemplateNode> out = body();
        if (at_ != parts_.size()) refuse_template("a statement that closes nothing");
        return out;
    }

 private:
    using Node = TemplateNode;

    // Nodes up to a statement that this level does not begin: elif, else, endif, endfor.
    std::vector<Node> body() {
        if (++depth_ > kMaxDepth) refuse_template("statements nested too deeply");
        std::vector<Node> out;
        for (; at_ < parts_.size(); ++at_) {
            const Part& part = parts_[at_];
            if (part.kind == 't') {
                out.push_back({Node::Kind::text, part.text});
                continue;
            }
            ExprParser code(tokens_of(part.text));
            if (part.kind == '{') {
                Node node{Node::Kind::output, ""};
                node.exprs.push_back(code.expression());
                code.finish();
                out.push_back(std::move(node));
                continue;
            }
            const std::string word = code.name();
            if (word == "if") {
                out.push_back(branch(std::move(code)));
            } else if (word == "for") {
                out.push_back(loop(std::move(code)));
            } else if (word == "set") {
                out.push_back(assignment(std::move(code)));
            } else if (word == "elif" || word == "else" || word == "endif" || word == "endfor") {
                break;
            } else {
                refuse_template("the statement " + word.substr(0, 40) + " is not supported");
            }
        }
        --depth_;
        return out;
    }

    // The statement that ended a body, and the expressions after its first word.
    std::pair<std::string, ExprParser> ender() {
        if (at_ == parts_.size()) refuse_template("a statement that is not closed");
        ExprParser code(tokens_of(parts_[at_].text));
        std::string word = code.name();
        return {std::move(word), std::move(code)};
    }

    Node branch(ExprParser code) {
        Node node{Node::Kind::branch, ""};
        node.exprs.push_back(code.expression());
        code.finish();
        bool last = false;
        while (true) {
            ++at_;
            node.bodies.push_back(body());
            auto [word, rest] = ender();
            if (word == "endfor" || (last && word != "endif")) refuse_template("expected endif");
            last = word == "else";
            if (word == "elif") node.exprs.push_back(rest.expression());
            rest.finish();
            if (word == "endif") return node;
        }
    }

    Node loop(ExprParser code) {
        Node node{Node::Kind::loop, code.name()};
        code.expect("in");
        node.exprs.push_back(code.expression());
        code.finish();
        ++at_;
        node.bodies.push_back(body());
        auto [word, rest] = ender();
        if (word == "else") {
            rest.finish();
            ++at_;
            node.bodies.push_back(body());
            std::tie(word, rest) = ender();
        }
        rest.finish();
        if (word != "endfor") refuse_template("expected endfor");
        return node;
    }

    static Node assignment(ExprParser code) {
        Node node{Node::Kind::set, code.name()};
        if (code.accept(".")) node.attribute = code.name();
        code.expect("=");
        node.exprs.push_back(code.expression());
        code.finish();
        return node;
    }

    std::vector<Part> parts_;
    size_t at_ = 0;
    int depth_ = 0;
};

}  // namespace

void refuse_template(const std::string& what) {
    throw Error(Status::bundle, "E_TEMPLATE", "chat template refused: " + what.substr(0, 300));
}

std::vector<TemplateNode> parse_template(const std::string& source) {
    if (source.size() > kMaxSource) refuse_template("longer than 65536 bytes");
    return TemplateParser(parts_of(source)).parse();
}

}  // namespace latrt
