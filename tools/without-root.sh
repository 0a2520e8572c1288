# What it means that the tests pass for an ordinary user. Sourced, not run, by tests/run
# and .ci/run:
#
#   . tools/without-root.sh
#   compare_with_list LOG    LOG is what cargo and the tests wrote
#   run_as_nobody BINARY...  tests that root has built, as an ordinary user, and compare

# The tests of tests/needs-root.txt that need root on this machine: "BINARY TEST" lines.
need_root_here() {
    local line counts=yes
    while read -r line; do
        case "$line" in
        '' | '#'*) ;;
        'because '*) counts=yes ;;
        'unless '*) ! (eval "${line#unless }") >/dev/null 2>&1 || counts='' ;;
        *) [ -z "$counts" ] || echo "$line" ;;
        esac
    done <tests/needs-root.txt
}

# Succeeds when the tests that failed are those of the list, as far as they were run.
compare_with_list() {
    awk '
        NR == FNR { listed[$0] = 1; next }
        # "Running executor/main.rs (target/debug/deps/executor-951883edaf3536fe)"
        /^ *Running .*\(.*\)$/ {
            end_of_binary()
            binary = $NF
            gsub(/^.*\/|-[0-9a-f]+\)$/, "", binary)
            next
        }
        /^ *Doc-tests / { end_of_binary(); binary = "doc:" $2; next }
        /^test result: / { has_result = 1 }
        /^test result: .* 0 filtered out;/ { whole[binary] = 1 }
        # What a test writes itself may stand before it, or between its name and its end.
        /test .* \.\.\. .*(ok|FAILED)$/ {
            test = $0
            sub(/^.*test /, "", test)
            sub(/ - should panic \.\.\. .*$| \.\.\. .*$/, "", test)
            outcome[binary " " test] = $NF ~ /FAILED$/ ? "failed" : "passed"
            failed_here += $NF ~ /FAILED$/
        }
        # After all of them: "    `-p netns-exec-tests --test guard`"
        /^error: .*target.* failed:$/ { end_of_binary(); in_failed = 1; next }
        in_failed && /^ *`.*`$/ { targets_failed++ }
        function end_of_binary() {
            # A program that brings its own harness says nothing else, and fails by its status.
            if (binary != "" && !has_result && binary != "chaos") {
                print "ended before its tests did: " binary
                bad = 1
            }
            if (failed_here) with_failures++
            binary = ""; has_result = 0; failed_here = 0
        }
        END {
            end_of_binary()
            if (targets_failed != with_failures) {
                print targets_failed + 0 " targets failed, and " with_failures + 0 " of them for a test"
                bad = 1
            }
            # The last one, where a test was run once more.
            for (test in outcome) {
                count++
                if (outcome[test] == "failed" && !(test in listed)) {
                    print "failed, and is not in tests/needs-root.txt: " test
                    bad = 1
                }
                if (outcome[test] == "passed" && test in listed) {
                    print "passed, so take it out of tests/needs-root.txt: " test
                    bad = 1
                }
                need += test in listed
            }
            for (test in listed) {
                split(test, words, " ")
                if (words[1] in whole && !(test in outcome)) {
                    print "is not there, so take it out of tests/needs-root.txt: " test
                    bad = 1
                }
            }
            if (!count) {
                print "no test was run"
                bad = 1
            }
            if (!bad)
                printf "as an ordinary user: %d tests passed, and %d need root (tests/needs-root.txt)\n", \
                    count - need, need
            exit bad
        }
    ' <(need_root_here) "$1"
}

# Not with cargo, of which that user may have none: from a folder that every user can read,
# with lines as cargo writes them. What fails that should not is run once more, on its own.
run_as_nobody() {
    local stage binary name failed='' again
    stage=$(mktemp -d)
    chmod 755 "$stage"
    need_root_here >"$stage/listed"
    for binary in "$@"; do
        name=$(basename "$binary")
        install -m 755 "$binary" "$stage/$name"
        echo "     Running $name (deps/$name)" >>"$stage/log"
        as_nobody "$stage" "$name" >"$stage/one" || {
            failed="$failed    \`$name\`"$'\n'
            mapfile -t again < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$stage/one" |
                sed "s/^/${name%-*} /" | grep -vxFf "$stage/listed" | sed 's/^[^ ]* //' | sort -u)
            if [ ${#again[@]} != 0 ]; then
                sed -n '/^failures:$/,$p' "$stage/one" >&2
                printf 'once more, on its own: %s\n' "${again[@]}" >&2
                as_nobody "$stage" "$name" --exact --test-threads=1 "${again[@]}" >>"$stage/one" || true
            fi
        }
        cat "$stage/one" >>"$stage/log"
    done
    [ -z "$failed" ] || printf 'error: targets failed:\n%s' "$failed" >>"$stage/log"
    if ! compare_with_list "$stage/log"; then
        cat "$stage/log" >&2
        rm -rf "$stage"
        return 1
    fi
    rm -rf "$stage"
}

as_nobody() {
    local stage=$1 name=$2
    shift 2
    (cd / && setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$stage" \
        "$stage/$name" "$@" 2>&1)
}
