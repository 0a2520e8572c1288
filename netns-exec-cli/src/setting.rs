//! Where and as which user a command runs: what belongs beside its results.

use std::fmt;

use netns_exec::rootless;
use nix::sys::utsname::uname;
use nix::unistd::getuid;
use serde::Serialize;

use crate::failure::Failure;

#[derive(Serialize)]
pub(crate) struct Setting {
    pub(crate) kernel: String,
    pub(crate) uid: u32,
    /// Whether a user namespace was entered to get the privilege.
    pub(crate) user_namespace: bool,
}

impl Setting {
    /// Sees to it that this process may make namespaces; before it has a second
    /// thread.
    pub(crate) fn prepare() -> Result<Setting, Failure> {
        let as_found = Setting::as_found()?;
        let entered = rootless::enter()?;
        Ok(Setting {
            user_namespace: entered.is_new(),
            ..as_found
        })
    }

    /// Changes nothing.
    pub(crate) fn as_found() -> Result<Setting, Failure> {
        let kernel =
            uname().map_err(|errno| Failure::io("cannot tell the kernel's release", errno))?;
        Ok(Setting {
            kernel: kernel.release().to_string_lossy().into_owned(),
            uid: getuid().as_raw(),
            user_namespace: false,
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}, ", self.kernel)?;
        match (self.uid, self.user_namespace) {
            (0, false) => f.write_str("as root"),
            (uid, false) => write!(f, "as user {uid} with CAP_SYS_ADMIN"),
            (uid, true) => write!(
                f,
                "as user {uid}, root in a user namespace entered for this"
            ),
        }
    }
}
