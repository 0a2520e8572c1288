# A second try for tests, on machines that are busy elsewhere. Sourced, not run, by tests/run:
#
#   . tools/again.sh
#   again_what_fails CARGO TEST ...    as that command, with the tests that fail run once
#                                      more, on their own; they are named at the end
#
# What fails both times fails, and so does what fails without naming a test.

again_what_fails() {
    local log status=0 failed targets target
    log=$(mktemp)
    "$@" --no-fail-fast 2>&1 | tee "$log" || status=$?
    mapfile -t failed < <(tests_that_failed "$log")
    # "    `-p netns-exec-tests --test guard`", after all of them.
    mapfile -t targets < <(sed -n '/^error: .*targets\{0,1\} failed:$/,$s/^ *`\(.*\)`$/\1/p' "$log")
    rm -f "$log"
    [ "$status" != 0 ] || return 0
    [ ${#failed[@]} != 0 ] || return "$status"
    printf '\nonce more, on their own: %s\n' "${failed[*]}"
    for target in "${targets[@]}"; do
        # shellcheck disable=SC2086 # several words
        cargo test $target -- --exact --test-threads=1 "${failed[@]}" || return
    done
    printf '\nFAILED AT FIRST, and passed on their own:\n'
    printf '    %s\n' "${failed[@]}"
}

# Nothing, when a target has failed that names no test.
tests_that_failed() {
    awk '
        /^ *(Running|Doc-tests) / { end_of_target() }
        # The second list of a target has names alone. A test may print such lists itself,
        # of a process of its own.
        /^failures:$/ { in_list = 1; next }
        in_list && /^    [^ ]/ { all[substr($0, 5)]; has_names = 1; next }
        /^test result: / { in_list = 0 }
        /^error: .*targets? failed:$/ { end_of_target(); in_failed = 1; next }
        in_failed && /^ *`.*`$/ { failed++ }
        function end_of_target() { with_names += has_names; has_names = in_list = 0 }
        END { if (with_names == failed) for (name in all) print name }
    ' "$1"
}
