//! What the C library starts threads for, without a crate: glibc's own declarations are not in
//! the `libc` crate, or not whole.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::mpsc::{Sender, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use netns_exec::NetnsId;

use crate::programs::{Outcome, Seen, here, text, threads};

/// For what the C library does in a thread of its own.
const LIMIT: Duration = Duration::from_secs(5);

/// sigevent(3type) with the members of its union that a thread takes.
#[repr(C)]
struct ThreadEvent {
    value: *mut c_void,
    signal: c_int,
    notify: c_int,
    function: extern "C" fn(*mut c_void),
    attributes: *mut c_void,
    rest: [usize; 4],
}

const _: () = assert!(size_of::<ThreadEvent>() == size_of::<libc::sigevent>());

/// A request of getaddrinfo_a(3).
#[repr(C)]
struct Request {
    name: *const c_char,
    service: *const c_char,
    hints: *const libc::addrinfo,
    result: *mut libc::addrinfo,
    returned: c_int,
    rest: [c_int; 5],
}

unsafe extern "C" {
    fn getaddrinfo_a(
        mode: c_int,
        list: *mut *mut Request,
        items: c_int,
        event: *mut libc::sigevent,
    ) -> c_int;
    fn gai_error(request: *mut Request) -> c_int;
}

const GAI_NOWAIT: c_int = 1;
const EAI_INPROGRESS: c_int = -100;

fn last_error() -> String {
    text(io::Error::last_os_error())
}

/// Asks until it is answered.
fn eventually<T>(mut answer: impl FnMut() -> Option<T>) -> Result<T, String> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        match answer() {
            Some(answer) => return Ok(answer),
            None => sleep(Duration::from_millis(1)),
        }
    }
    Err("no answer".to_owned())
}

extern "C" fn say_where(sender: *mut c_void) {
    // SAFETY: `timer` leaks it.
    let sender = unsafe { &*sender.cast::<Sender<NetnsId>>() };
    let _ = sender.send(here());
}

pub(crate) fn timer() -> Outcome {
    let (sender, receiver) = channel();
    let mut event = ThreadEvent {
        value: (&raw mut *Box::leak(Box::new(sender))).cast(),
        signal: 0,
        notify: libc::SIGEV_THREAD,
        function: say_where,
        attributes: null_mut(),
        rest: [0; 4],
    };
    let mut timer = null_mut();
    // SAFETY: both live as long as the call, and what the event points to for ever.
    let made = unsafe {
        libc::timer_create(
            libc::CLOCK_MONOTONIC,
            (&raw mut event).cast(),
            &raw mut timer,
        )
    };
    if made != 0 {
        return Err(last_error());
    }
    // SAFETY: zero is a value of it.
    let mut soon: libc::itimerspec = unsafe { zeroed() };
    soon.it_value.tv_nsec = 1_000_000;
    // SAFETY: the timer is there, and the time is read during the call.
    if unsafe { libc::timer_settime(timer, 0, &raw const soon, null_mut()) } != 0 {
        return Err(last_error());
    }
    let seen = receiver.recv_timeout(LIMIT).map_err(text);
    // SAFETY: it is there, and rings once.
    unsafe { libc::timer_delete(timer) };
    threads(vec![seen?])
}

pub(crate) fn look_up() -> Outcome {
    const NAME: &CStr = c"localhost";
    // Leaked: a look-up that is never over must not write to a frame that is gone.
    let request = Box::leak(Box::new(Request {
        name: NAME.as_ptr(),
        service: null_mut(),
        hints: null_mut(),
        result: null_mut(),
        returned: 0,
        rest: [0; 5],
    }));
    let mut list = [&raw mut *request];
    // SAFETY: the request lives for ever, the list is read during the call.
    match unsafe { getaddrinfo_a(GAI_NOWAIT, list.as_mut_ptr(), 1, null_mut()) } {
        0 => {}
        error => return Err(format!("getaddrinfo_a: {error}")),
    }
    // SAFETY: as above.
    let over = || match unsafe { gai_error(list[0]) } {
        EAI_INPROGRESS => None,
        error => Some(error),
    };
    match eventually(over)? {
        0 => Ok(Seen::default()),
        error => Err(format!("getaddrinfo_a: {error}")),
    }
}

pub(crate) fn aio() -> Outcome {
    let file = tempfile()?;
    // SAFETY: zero is a value of it. Leaked, as in `look_up`.
    let request = Box::leak(Box::new(unsafe { zeroed::<libc::aiocb>() }));
    let text: &'static [u8] = b"written";
    request.aio_fildes = file.as_raw_fd();
    request.aio_buf = text.as_ptr().cast_mut().cast();
    request.aio_nbytes = text.len();
    request.aio_sigevent.sigev_notify = libc::SIGEV_NONE;
    let request = &raw mut *request;
    // SAFETY: request and text live for ever.
    if unsafe { libc::aio_write(request) } != 0 {
        return Err(last_error());
    }
    // SAFETY: as above.
    let over = || match unsafe { libc::aio_error(request) } {
        libc::EINPROGRESS => None,
        error => Some(error),
    };
    match eventually(over)? {
        0 => Ok(Seen::default()),
        errno => Err(self::text(io::Error::from_raw_os_error(errno))),
    }
}

/// A file without a name.
fn tempfile() -> Result<std::fs::File, String> {
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = std::fs::File::options();
    options.write(true).custom_flags(libc::O_TMPFILE);
    options.open(std::env::temp_dir()).map_err(text)
}
