//! What an argument binds.

use syn::visit::Visit;
use syn::{Attribute, Ident, PatIdent};

/// Arguments under `#[cfg]` reach us before the compiler has looked at it.
pub(crate) fn is_cfg(attr: &Attribute) -> bool {
    attr.path().is_ident("cfg")
}

/// The names that a pattern binds.
pub(crate) struct Bindings(pub(crate) Vec<Ident>);

impl<'ast> Visit<'ast> for Bindings {
    fn visit_pat_ident(&mut self, pat: &'ast PatIdent) {
        self.0.push(pat.ident.clone());
        syn::visit::visit_pat_ident(self, pat);
    }
}
