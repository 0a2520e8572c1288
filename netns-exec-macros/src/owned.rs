//! What the body of an `async fn` may take along: what it owns.
//!
//! The body of a plain function may borrow, because the caller waits. That of an `async
//! fn` goes on a worker while its caller may stop waiting at any time, and take with it
//! what it has lent.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::{
    Error, FnArg, Lifetime, PatType, Receiver, Result, ReturnType, Signature, Type, TypeReference,
};

use crate::bindings::{Bindings, is_cfg};

/// Refuses what the body borrows from its caller, where it is borrowed.
///
/// A reference that the body does not mention stays behind, so it may be there: `&self`
/// in a method whose namespace is `self.ns`.
pub(crate) fn refuse_borrowed(sig: &Signature, body: &TokenStream) -> Result<()> {
    let mut errors = sig.inputs.iter().filter_map(|arg| {
        let (span, names, cure) = match arg {
            FnArg::Receiver(receiver) => (
                borrowing_receiver(receiver)?,
                vec![Ident::new("self", Span::call_site())],
                "take `self: Arc<Self>`, or clone what the body needs and pass it to a \
                 function without `self`",
            ),
            FnArg::Typed(PatType { pat, ty, .. }) => {
                let mut bindings = Bindings(Vec::new());
                bindings.visit_pat(pat);
                let span = borrowing(ty)?;
                if !matches!(**ty, Type::Reference(_)) {
                    // Owned by the function, and dropped with the body.
                    return Some(refusal(span, OWN));
                }
                (span, bindings.0, OWN)
            }
        };
        let mentioned = names.iter().any(|name| mentions(body, name));
        mentioned.then(|| refusal(span, cure))
    });
    let Some(mut first) = errors.next() else {
        return Ok(());
    };
    first.extend(errors);
    Err(first)
}

const OWN: &str = "take it by value (`String`, `Vec`, `Arc`), or as `&'static`";

fn refusal(span: Span, cure: &str) -> Error {
    Error::new(
        span,
        format!(
            "borrowed by the body of an `async fn` under `#[in_netns]`, which goes on in the \
             namespace when its caller has stopped waiting, until it is dropped there: {cure}"
        ),
    )
}

fn borrowing_receiver(receiver: &Receiver) -> Option<Span> {
    match &receiver.reference {
        Some((and, _)) => Some(and.span()),
        None => borrowing(&receiver.ty),
    }
}

/// Where a type borrows for less than `'static`, as far as it says so.
fn borrowing(ty: &Type) -> Option<Span> {
    struct Borrows(Option<Span>);
    impl<'ast> Visit<'ast> for Borrows {
        fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
            if lifetime.ident != "static" && self.0.is_none() {
                self.0 = Some(lifetime.span());
            }
        }

        fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
            if reference.lifetime.is_none() && self.0.is_none() {
                self.0 = Some(reference.and_token.span());
            }
            syn::visit::visit_type_reference(self, reference);
        }

        // `fn(&str)` and `impl Fn(&str)` borrow when they are called.
        fn visit_type_bare_fn(&mut self, _: &'ast syn::TypeBareFn) {}
        fn visit_parenthesized_generic_arguments(
            &mut self,
            _: &'ast syn::ParenthesizedGenericArguments,
        ) {
        }
        fn visit_bound_lifetimes(&mut self, _: &'ast syn::BoundLifetimes) {}
    }
    let mut borrows = Borrows(None);
    borrows.visit_type(ty);
    borrows.0
}

fn mentions(tokens: &TokenStream, name: &Ident) -> bool {
    tokens.clone().into_iter().any(|tree| match tree {
        TokenTree::Ident(ident) => ident == *name,
        TokenTree::Group(group) => mentions(&group.stream(), name),
        _ => false,
    })
}

/// Statements for the caller's side that ask of each owned argument, and of the result, what
/// crossing threads needs, so that the compiler complains where it stands.
pub(crate) fn demands(sig: &Signature, here: Span) -> TokenStream {
    let result = match &sig.output {
        ReturnType::Type(_, ty) if !has_impl_trait(ty) => {
            let at = here.located_at(ty.span());
            quote_spanned!(at=> ::netns_exec::__private::sendable::<#ty>();)
        }
        _ => TokenStream::new(),
    };
    let arguments: TokenStream = sig
        .inputs
        .iter()
        .map(|arg| match arg {
            FnArg::Receiver(receiver) if borrowing_receiver(receiver).is_some() => {
                TokenStream::new()
            }
            FnArg::Receiver(receiver) => {
                let token = &receiver.self_token;
                let at = here.located_at(receiver.span());
                quote_spanned!(at=> ::netns_exec::__private::owned(&#token);)
            }
            FnArg::Typed(arg) if borrowing(&arg.ty).is_some() => TokenStream::new(),
            FnArg::Typed(arg) => {
                let mut bindings = Bindings(Vec::new());
                bindings.visit_pat(&arg.pat);
                let conditions: Vec<_> = arg.attrs.iter().filter(|a| is_cfg(a)).collect();
                let at = here.located_at(arg.ty.span());
                (bindings.0.iter())
                    .map(|binding| {
                        quote_spanned! {at=>
                            #(#conditions)*
                            #[allow(clippy::used_underscore_binding)]
                            ::netns_exec::__private::owned(&#binding);
                        }
                    })
                    .collect()
            }
        })
        .collect();
    quote!(#result #arguments)
}

fn has_impl_trait(ty: &Type) -> bool {
    struct Finds(bool);
    impl<'ast> Visit<'ast> for Finds {
        fn visit_type_impl_trait(&mut self, _: &'ast syn::TypeImplTrait) {
            self.0 = true;
        }
    }
    let mut finds = Finds(false);
    finds.visit_type(ty);
    finds.0
}
