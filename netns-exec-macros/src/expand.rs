//! What the function is turned into.

use proc_macro2::{Delimiter, Group, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit::Visit;
use syn::visit_mut::VisitMut;
use syn::{Expr, FnArg, Ident, Pat, PatType, Receiver, ReturnType, Signature, Type, parse_quote};

use crate::bindings::{Bindings, is_cfg};
use crate::owned::demands;
use crate::parse::{Args, Function, Source};

/// Writes the function whose body ships `function`'s body to a worker.
///
/// Names of our own carry the `mixed_site` hygiene: the body can neither see
/// nor shadow them.
pub(crate) fn expand(args: &Args, mut function: Function) -> TokenStream {
    let here = Span::mixed_site();
    name_wildcards(&mut function.sig, here);
    let captures = captures(&function.sig, here);
    let returns = closure_return(&function.sig.output);
    let executor = executor(args, here);
    let Function {
        attrs,
        vis,
        sig,
        body,
    } = &function;

    // Its braces are those of the function that was written, so that lints and
    // errors which point at a block point at that one.
    let in_braces = |content: TokenStream| {
        let mut block = Group::new(Delimiter::Brace, content);
        block.set_span(body.span());
        block
    };
    let inside = body.stream();
    let is_async = sig.asyncness.is_some();
    let (demands, shipped) = if is_async {
        let returns = returns_type(&returns, here);
        let block = in_braces(quote!(#returns #captures #inside));
        (demands(sig, here), quote_spanned!(here=> async move #block))
    } else {
        let block = in_braces(quote!(#captures #inside));
        // What the body calls the other end of a link, where it has asked for one.
        let peer = (args.link.iter()).map(|peer| quote!(#peer: &::netns_exec_lab::Peer));
        let shipped = quote_spanned!(here=> move |#(#peer)*| -> #returns #block);
        (TokenStream::new(), shipped)
    };
    let source = source(&args.source, here);
    let private = quote_spanned!(here=> ::netns_exec::__private);
    let run = match (&source, is_async) {
        (Some(_), false) => quote_spanned!(here=> #private::run(&executor, source, #shipped)),
        (None, false) if args.link.is_some() => {
            quote_spanned!(here=> ::netns_exec_lab::__private::run_linked(&executor, #shipped))
        }
        (None, false) => quote_spanned!(here=> #private::run_fresh(&executor, #shipped)),
        (Some(_), true) => {
            quote_spanned!(here=> #private::run_future(&executor, source, #shipped).await)
        }
        (None, true) => {
            quote_spanned!(here=> #private::run_future_fresh(&executor, #shipped).await)
        }
    };
    let source = source.map(|source| quote_spanned!(here=> let source = #source;));

    let outside = in_braces(quote_spanned! {here=>
        #demands
        #source
        let executor = #executor;
        let outcome = #run;
        let failure = ::netns_exec::__private::Failure::of(&outcome);
        match outcome {
            ::core::result::Result::Ok(value) => value,
            ::core::result::Result::Err(error) => {
                use ::netns_exec::__private::{PanicWithFailure as _, ReturnFailure as _};
                (&failure).end(error)
            }
        }
    });
    quote!(#(#attrs)* #vis #sig #outside)
}

/// The call that opens the namespace, or nothing for a fresh one.
fn source(source: &Source, here: Span) -> Option<TokenStream> {
    let call = match source {
        Source::Literal(name) => quote_spanned!(here=> open(#name)),
        Source::Name(name) => with_borrowed("open", name, here),
        Source::Path(path) => with_borrowed("from_path", path, here),
        Source::Pid(pid) => quote_spanned!(here=> from_pid(#pid)),
        Source::Ns(ns) => with_borrowed("netns", ns, here),
        Source::Fresh => return None,
    };
    Some(quote_spanned!(here=> ::netns_exec::__private::#call))
}

fn executor(args: &Args, here: Span) -> TokenStream {
    let call = match &args.executor {
        Some(executor) => with_borrowed("executor", executor, here),
        None => quote_spanned!(here=> global_executor()),
    };
    quote_spanned!(here=> ::netns_exec::__private::#call)
}

/// Borrows what `expr` names instead of moving it, for the body may want it.
/// A wrong type is reported where the expression stands.
fn with_borrowed(function: &str, expr: &Expr, here: Span) -> TokenStream {
    let function = Ident::new(function, here);
    let borrowed = quote_spanned!(here.located_at(expr.span())=> &(#expr));
    quote_spanned!(here=> #function(#borrowed))
}

/// The closure's return type: the function's, so that `return`, `?` and
/// coercions mean the same in both, with a hole for each `impl Trait`, which a
/// closure cannot name.
fn closure_return(output: &ReturnType) -> TokenStream {
    match output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => {
            let mut ty = (**ty).clone();
            HoleForImplTrait.visit_type_mut(&mut ty);
            ty.into_token_stream()
        }
    }
}

/// A statement that tells the compiler what an `async` block returns, which has no place
/// for it, so that `return`, `?` and coercions mean what they meant.
fn returns_type(returns: &TokenStream, here: Span) -> TokenStream {
    quote_spanned! {here=>
        #[allow(unreachable_code, clippy::diverging_sub_expression, clippy::let_unit_value)]
        if false {
            let returned: #returns = ::core::unreachable!();
            return returned;
        }
    }
}

struct HoleForImplTrait;

impl VisitMut for HoleForImplTrait {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        if matches!(ty, Type::ImplTrait(_)) {
            *ty = parse_quote!(_);
        } else {
            syn::visit_mut::visit_type_mut(self, ty);
        }
    }
}

/// Gives `_` arguments a name, because what has none cannot be moved into the
/// closure and would be dropped by the caller, in the caller's namespace.
fn name_wildcards(sig: &mut Signature, here: Span) {
    for (index, arg) in sig.inputs.iter_mut().enumerate() {
        if let FnArg::Typed(PatType { pat, ty, .. }) = arg
            && matches!(**pat, Pat::Wild(_))
            && !is_reference(ty)
        {
            let name = Ident::new(&format!("unnamed_{index}"), here);
            **pat = parse_quote!(#name);
        }
    }
}

/// Statements that make the closure own the arguments that the function owns.
///
/// Left alone it would capture what the body mentions, field by field, and the
/// rest would be dropped by the caller, in the caller's namespace. Captures are
/// dropped in the order in which they are mentioned, arguments in the reverse
/// of theirs, hence `rev`.
fn captures(sig: &Signature, here: Span) -> TokenStream {
    sig.inputs
        .iter()
        .rev()
        .map(|arg| match arg {
            FnArg::Receiver(receiver) => capture_receiver(receiver, here),
            FnArg::Typed(arg) if is_reference(&arg.ty) => TokenStream::new(),
            FnArg::Typed(arg) => {
                let mut bindings = Bindings(Vec::new());
                bindings.visit_pat(&arg.pat);
                let conditions: Vec<_> = arg.attrs.iter().filter(|a| is_cfg(a)).collect();
                (bindings.0.iter().rev())
                    .map(|binding| {
                        quote_spanned! {here=>
                            #(#conditions)*
                            #[allow(clippy::used_underscore_binding)]
                            let _ = &#binding;
                        }
                    })
                    .collect()
            }
        })
        .collect()
}

fn capture_receiver(receiver: &Receiver, here: Span) -> TokenStream {
    if receiver.reference.is_some() || is_reference(&receiver.ty) {
        return TokenStream::new();
    }
    // The token of the signature, whose hygiene the body shares.
    let token = &receiver.self_token;
    quote_spanned!(here=> let _ = &#token;)
}

/// A reference owns nothing that could be dropped in the wrong place.
fn is_reference(ty: &Type) -> bool {
    match ty {
        Type::Reference(_) => true,
        Type::Group(group) => is_reference(&group.elem),
        Type::Paren(paren) => is_reference(&paren.elem),
        _ => false,
    }
}
