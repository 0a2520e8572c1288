use netns_exec::in_netns;

#[in_netns(path)]
fn key_without_value() {}

#[in_netns(pid =)]
fn equals_sign_without_value() {}

#[in_netns(ns =, fresh)]
fn value_left_out() {}

#[in_netns(fresh = true)]
fn value_where_none_belongs() {}

#[in_netns(4711)]
fn pid_without_key() {}

#[in_netns(b"blue")]
fn bytes_for_a_name() {}

#[in_netns("blue" executor = e)]
fn comma_left_out() {}

#[in_netns(path("/run/netns/blue"))]
fn parentheses_for_equals_sign() {}

fn main() {}
