//! The capabilities of one thread: capget(2) and capset(2).
//!
//! The raw calls, because they are per thread; libcap's and glibc's idea of a
//! process-wide set is what this library must not touch.
#![allow(unsafe_code)]

use std::io;

use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3`: 64 bits in two words.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One word of each set.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

type Sets = [Word; 2];

/// `CAP_SYS_ADMIN` is in the first word.
const BIT: u32 = SYS_ADMIN as u32;

fn get() -> io::Result<Sets> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut sets = Sets::default();
    // SAFETY: version 3 reads one header and writes two words, all live here.
    let rc = unsafe { libc::syscall(libc::SYS_capget, &mut header, sets.as_mut_ptr()) };
    Errno::result(rc)?;
    Ok(sets)
}

fn set(sets: &Sets) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // SAFETY: version 3 reads one header and two words, all live here.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &mut header, sets.as_ptr()) };
    Errno::result(rc)?;
    Ok(())
}

/// Tells whether the calling thread has `CAP_SYS_ADMIN` in its user namespace.
pub(crate) fn has_sys_admin() -> io::Result<bool> {
    Ok(get()?[0].effective & BIT != 0)
}

/// May enter, make and mount things: what setns(2) and unshare(2) ask for.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
/// May bind ports below `ip_unprivileged_port_start`.
pub(crate) const NET_BIND_SERVICE: u64 = 1 << 10;
/// May set up networks, and filter the packets of TCP sockets.
pub(crate) const NET_ADMIN: u64 = 1 << 12;

/// May be root of a user namespace as root: user_namespaces(7).
pub(crate) const SETFCAP: u64 = 1 << 31;

/// The effective capabilities of the calling thread.
pub(crate) fn effective() -> io::Result<u64> {
    let [low, high] = get()?;
    Ok(u64::from(high.effective) << 32 | u64::from(low.effective))
}

/// Takes every capability from the calling thread but those in `kept`, which it
/// keeps as far as it has them; no program that it executes inherits any.
pub(crate) fn keep_only(kept: u64) -> io::Result<()> {
    let mut sets = get()?;
    for (word, kept) in sets.iter_mut().zip([kept as u32, (kept >> 32) as u32]) {
        word.permitted &= kept;
        word.effective &= kept;
        word.inheritable = 0;
    }
    set(&sets)
}

/// Takes `CAP_SYS_ADMIN` from the calling thread, for good, and from no other;
/// every other capability stays.
///
/// A child that uid 0 executes has it again: execve(2) computes the sets of
/// root anew from the bounding set, which is left alone.
pub(crate) fn drop_sys_admin() -> io::Result<()> {
    let before = get()?;
    let mut after = before;
    // The kernel drops from the ambient set what is not permitted and
    // inheritable, see capabilities(7).
    after[0].effective &= !BIT;
    after[0].permitted &= !BIT;
    after[0].inheritable &= !BIT;
    if after == before {
        return Ok(());
    }
    set(&after)?;
    // A security module may have its own mind; a seal that is not there must
    // not be believed in.
    if get()? != after {
        return Err(Errno::EPERM.into());
    }
    Ok(())
}

/// All sets of capabilities that a thread has.
pub(crate) struct All {
    pub(crate) inheritable: u64,
    pub(crate) permitted: u64,
    pub(crate) effective: u64,
    pub(crate) bounding: u64,
    pub(crate) ambient: u64,
}

/// Gives the calling thread `wanted`, as far as it can be had: what a thread was
/// refused or gave up it does not get back.
pub(crate) fn become_like(wanted: &All) -> io::Result<()> {
    const HIGHEST: u32 = 63;
    let has = |set: u64, capability: u32| set & (1 << capability) != 0;
    // First: it takes CAP_SETPCAP.
    for capability in (0..=HIGHEST).filter(|&it| !has(wanted.bounding, it)) {
        // SAFETY: the call takes integers.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
    let word = |shift: u32| Word {
        effective: (wanted.effective >> shift) as u32,
        permitted: (wanted.permitted >> shift) as u32,
        inheritable: (wanted.inheritable >> shift) as u32,
    };
    set(&[word(0), word(32)])?;
    for capability in 0..=HIGHEST {
        let change = match has(wanted.ambient, capability) {
            true => libc::PR_CAP_AMBIENT_RAISE,
            false => libc::PR_CAP_AMBIENT_LOWER,
        };
        // SAFETY: the call takes integers.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, change, capability, 0, 0) };
    }
    Ok(())
}
