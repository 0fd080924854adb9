#include "runtime/policy.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/error.h"

namespace latrt {

Policy Policy::preset(const std::string& name) {
    Policy p;
    p.name = name;
    if (name == "copy") return p;
    if (name == "route") {
        p.select = Select::route;
    } else if (name == "random") {
        p.select = Select::random;
    } else if (name == "vision") {
        p.close_at_once = true;
    } else if (name == "text" || name == "never") {
        p.trigger = Trigger::none;
        p.allow_reflection = name == "text";
    } else {
        throw Error(Status::usage, "E_POLICY",
                    "policy '" + name.substr(0, 80) +
                        "' is unknown\nuse one of copy, route, text, vision, never, random");
    }
    return p;
}

void Policy::check() const {
    const auto refuse = [](const char* what) { throw Error(Status::usage, "E_POLICY", what); };
    if (every_tokens < 1) refuse("policy.every_tokens: expected an integer >= 1");
    if (min_gap < 0) refuse("policy.min_gap: expected an integer >= 0");
    if (max_reflections < 0) refuse("policy.max_reflections: expected an integer >= 0");
    if (!(entropy_nats >= 0 && entropy_nats <= 1e9))
        refuse("policy.entropy_nats: expected 0 to 1e9");
    if (!(percent >= 0 && percent <= 100)) refuse("policy.percent: expected 0 to 100");
}

bool Policy::injects() const {
    return trigger != Trigger::none && (allow_reflection || trigger != Trigger::reflection);
}

bool Policy::fires(int64_t step, bool is_reflection, double entropy, int64_t since_last) const {
    switch (trigger) {
        case Trigger::reflection:
            return is_reflection;
        case Trigger::every:
            return step > 0 && step % every_tokens == 0;
        case Trigger::entropy:
            return (since_last < 0 || since_last >= min_gap) && entropy > entropy_nats;
        default:
            return false;
    }
}

int64_t Policy::num_selected(int64_t num_visual) const {
    if (select == Select::all) return num_visual;
    const double exact = percent * static_cast<double>(num_visual) / 100;
    const double nearest = std::nearbyint(exact);
    // 7 % of 100 is 7.000000000000001 in floating point, but 7 tokens.
    const bool whole = std::fabs(exact - nearest) <= 1e-12 * std::max(exact, nearest);
    return static_cast<int64_t>(whole ? nearest : std::ceil(exact));
}

std::vector<int64_t> select_tokens(const Policy& policy, int64_t num_visual,
                                   const std::vector<std::vector<float>>& step_masses,
                                   const std::vector<float>& first_pass, Random& random) {
    const size_t count = static_cast<size_t>(policy.num_selected(num_visual));
    std::vector<int64_t> order(static_cast<size_t>(num_visual));
    std::iota(order.begin(), order.end(), int64_t{0});
    if (policy.select == Select::all) return order;
    if (policy.select == Select::random) {
        order = random.permutation(num_visual);
    } else if (count > 0) {
        std::vector<double> mean(first_pass.begin(), first_pass.end());
        if (!step_masses.empty()) mean.assign(static_cast<size_t>(num_visual), 0.0);
        for (const std::vector<float>& mass : step_masses) {
            for (size_t i = 0; i < mean.size(); ++i) mean[i] += mass[i];
        }
        const double steps = static_cast<double>(std::max<size_t>(step_masses.size(), 1));
        for (double& value : mean) value /= steps;
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            return mean[static_cast<size_t>(a)] > mean[static_cast<size_t>(b)];
        });
    }
    order.resize(count);
    std::sort(order.begin(), order.end());
    return order;
}

}  // namespace latrt
