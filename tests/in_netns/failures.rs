//! What a function says that could not enter, and how panics pass through.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::io;

use netns_exec::{Netns, in_netns};
use netns_exec_tests::{TempNetns, fresh, panic_of, panic_text};

use super::targets::by_borrowed_handle;

#[derive(Debug)]
enum AppError {
    Netns(netns_exec::Error),
    Parse,
}

impl From<netns_exec::Error> for AppError {
    fn from(error: netns_exec::Error) -> AppError {
        AppError::Netns(error)
    }
}

impl From<std::num::ParseIntError> for AppError {
    fn from(_: std::num::ParseIntError) -> AppError {
        AppError::Parse
    }
}

type AppResult<T> = Result<T, AppError>;

#[in_netns(name = name)]
fn parse(name: &str, text: &str) -> AppResult<u32> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.parse()?;
    Ok(number)
}

#[in_netns(name = name)]
fn to_io(name: &str) -> io::Result<()> {
    Ok(())
}

#[in_netns(name = name)]
fn to_own(name: &str) -> netns_exec::Result<()> {
    Ok(())
}

#[in_netns(name = name)]
fn to_dyn(name: &str) -> Result<(), Box<dyn StdError + Send + Sync>> {
    Ok(())
}

#[in_netns(name = name)]
fn to_generic<E>(name: &str) -> Result<(), E>
where
    E: From<netns_exec::Error> + Send,
{
    Ok(())
}

#[in_netns("no-such-netns")]
fn no_result() -> u32 {
    1
}

#[in_netns("no-such-netns")]
fn unconvertible() -> Result<u32, String> {
    Ok(1)
}

#[in_netns("no-such-netns")]
fn unknown<T: Send + Default>() -> T {
    T::default()
}

#[in_netns("no-such-netns")]
fn unknown_error<E: Send>() -> Result<u32, E> {
    Ok(1)
}

#[in_netns("no-such-netns")]
fn diverging() -> ! {
    panic!("not reached");
}

#[test]
fn failure_to_enter_is_returned_where_the_error_converts() {
    let error = parse("no-such-netns", "1").expect_err("no namespace");
    assert!(matches!(error, AppError::Netns(error) if error.is_not_found()));
    let error = to_io("no-such-netns").expect_err("no namespace");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(
        to_own("no-such-netns")
            .expect_err("no namespace")
            .is_not_found()
    );
    let error = to_dyn("no-such-netns").expect_err("no namespace");
    assert!(error.is::<netns_exec::Error>());
    let error = to_generic::<io::Error>("no-such-netns").expect_err("no namespace");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn failure_to_enter_panics_with_its_text_where_it_cannot_be_returned() {
    let expected = Netns::open("no-such-netns")
        .expect_err("no namespace")
        .to_string();
    assert!(expected.contains("no-such-netns"));
    assert_eq!(panic_text(no_result), expected);
    assert_eq!(panic_text(unconvertible), expected);
    assert_eq!(panic_text(unknown::<u8>), expected);
    assert_eq!(panic_text(unknown_error::<u8>), expected);
    // What the type is at the call does not count: the function knows `T` only.
    assert_eq!(panic_text(unknown_result), expected);
    let diverge: fn() = || diverging();
    assert_eq!(panic_text(diverge), expected);
}

#[in_netns("no-such-netns")]
fn generic_of<T: Send>(value: T) -> T {
    value
}

fn unknown_result() -> netns_exec::Result<u8> {
    generic_of(Ok(1))
}

#[test]
#[should_panic(expected = "no-such-netns")]
#[in_netns("no-such-netns")]
fn failure_to_enter_fails_a_test() {}

#[test]
fn question_mark_and_return_end_the_body_alone() {
    let named = TempNetns::new();
    assert!(matches!(parse(named.name(), ""), Ok(0)));
    assert!(matches!(parse(named.name(), "17"), Ok(17)));
    assert!(matches!(parse(named.name(), "x"), Err(AppError::Parse)));
    assert!(to_io(named.name()).is_ok());
    assert!(to_own(named.name()).is_ok());
    assert!(to_dyn(named.name()).is_ok());
    assert!(to_generic::<io::Error>(named.name()).is_ok());
}

#[in_netns(ns = ns)]
fn panic_with(ns: &Netns, payload: u64) {
    std::panic::panic_any(payload);
}

#[test]
fn panic_reaches_the_caller_with_its_payload() {
    let ns = fresh();
    let payload = panic_of(|| panic_with(&ns, 4711));
    assert_eq!(payload.downcast_ref(), Some(&4711_u64));
    assert_eq!(by_borrowed_handle(&ns), ns.id());
}
