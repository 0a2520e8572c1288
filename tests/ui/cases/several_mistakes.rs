use netns_exec::in_netns;

#[in_netns(bleu = 1)]
const fn both_are_told() {}

fn main() {}
