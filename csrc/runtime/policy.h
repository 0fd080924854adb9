// Re-attention policies as data: trigger x select x inject x limits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/random.h"

namespace latrt {

// `reflection`: before each generated <REFLECTION>. `every`: before generated token n, 2n, ...
// `entropy`: before a token drawn from a distribution of more than `entropy_nats`, at least
// `min_gap` tokens after the previous injection.
enum class Trigger { reflection, every, entropy, none };
// `given`: the caller of Session::reinject named them.
enum class Select { all, route, random, given };
enum class Inject { embed, kv };

struct Policy {
    std::string name = "copy";
    Trigger trigger = Trigger::reflection;
    int64_t every_tokens = 64, min_gap = 16;
    double entropy_nats = 2.0;
    Select select = Select::all;
    double percent = 50;  // of the visual tokens, for route and random
    Inject inject = Inject::embed;
    int64_t max_reflections = 8;
    bool close_at_once = false;    // </REFLECTION> is forced right after <REFLECTION>
    bool allow_reflection = true;  // false: <REFLECTION> is never sampled

    // The preset copy, route, text, vision, never or random. Throws Error E_POLICY.
    static Policy preset(const std::string& name);

    // Throws Error E_POLICY naming the field.
    void check() const;

    bool injects() const;
    bool needs_mass() const { return injects() && select == Select::route; }

    // Whether visual tokens go in before generated token `step` (from 0). `since_last` counts
    // from the previous firing, -1 at first.
    bool fires(int64_t step, bool is_reflection, double entropy, int64_t since_last) const;

    // ceil(percent / 100 * num_visual); all of them for `all`.
    int64_t num_selected(int64_t num_visual) const;
};

// Visual tokens to inject, ascending. ROUTE ranks by the mean of `step_masses`, by `first_pass`
// where there is none yet (paper, equation 5); ties go to the lower index.
std::vector<int64_t> select_tokens(const Policy& policy, int64_t num_visual,
                                   const std::vector<std::vector<float>>& step_masses,
                                   const std::vector<float>& first_pass, Random& random);

}  // namespace latrt
