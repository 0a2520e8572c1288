//! What the attribute was given and what it stands on.

use proc_macro2::{Delimiter, Group, Span, TokenStream, TokenTree};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Abi, Attribute, Error, Expr, Ident, LitStr, Result, Signature, Token, Visibility};

use crate::owned::refuse_borrowed;

/// The forms of the attribute, for the messages that have to list them.
const FORMS: &str =
    "`\"NAME\"`, `name = EXPR`, `path = EXPR`, `pid = EXPR`, `ns = EXPR` or `fresh`";

/// The namespace that the body is to run in.
#[derive(Debug)]
pub(crate) enum Source {
    /// `"blue"`: a name that was already checked.
    Literal(LitStr),
    Name(Expr),
    Path(Expr),
    Pid(Expr),
    Ns(Expr),
    Fresh,
}

/// What stands between the attribute's parentheses.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) source: Source,
    pub(crate) executor: Option<Expr>,
    /// `link = peer`: what the body calls the other end of a link.
    pub(crate) link: Option<Ident>,
}

/// One of the comma-separated arguments, with the span to complain about.
enum Arg {
    Source(Span, Source),
    Executor(Span, Expr),
    Link(Ident),
}

impl Parse for Args {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut source = None;
        let mut executor = None;
        let mut link = None;
        for arg in Punctuated::<Arg, Token![,]>::parse_terminated(input)? {
            match arg {
                Arg::Source(span, _) if source.is_some() => {
                    return Err(Error::new(
                        span,
                        "a second namespace: a function runs in one, so keep one of the two",
                    ));
                }
                Arg::Source(_, given) => source = Some(given),
                Arg::Executor(span, _) if executor.is_some() => {
                    return Err(Error::new(
                        span,
                        "`executor` is given twice: keep one of the two",
                    ));
                }
                Arg::Executor(_, given) => executor = Some(given),
                Arg::Link(name) if link.is_some() => {
                    return Err(Error::new(
                        name.span(),
                        "`link` is given twice: for more than a pair write a `netns_exec_lab::Lab`",
                    ));
                }
                Arg::Link(name) => link = Some(name),
            }
        }
        if let (Some(name), Some(source)) = (&link, &source)
            && !matches!(source, Source::Fresh)
        {
            return Err(Error::new(
                name.span(),
                "only a `fresh` namespace can be given a link: a namespace that others know is \
                 left as it is",
            ));
        }
        match source {
            Some(source) => Ok(Args {
                source,
                executor,
                link,
            }),
            // The whole attribute: there is no token that could be wrong.
            None => Err(Error::new(
                Span::call_site(),
                format!("`#[in_netns]` does not say which namespace: give it {FORMS}"),
            )),
        }
    }
}

impl Parse for Arg {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        if input.peek(LitStr) {
            let name: LitStr = input.parse()?;
            check_name(&name)?;
            expect_end_of_arg(input)?;
            return Ok(Arg::Source(name.span(), Source::Literal(name)));
        }
        if !input.peek(Ident::peek_any) {
            return Err(input.error(format!(
                "expected a namespace ({FORMS}) or `executor = EXPR`"
            )));
        }

        let key = input.call(Ident::parse_any)?;
        let span = key.span();
        if key == "link" {
            return parse_link(span, input);
        }
        let make: fn(Span, Expr) -> Arg = match key.to_string().as_str() {
            "name" => |span, value| Arg::Source(span, Source::Name(value)),
            "path" => |span, value| Arg::Source(span, Source::Path(value)),
            "pid" => |span, value| Arg::Source(span, Source::Pid(value)),
            "ns" => |span, value| Arg::Source(span, Source::Ns(value)),
            "executor" => Arg::Executor,
            "fresh" => {
                if input.peek(Token![=]) {
                    return Err(input.error("`fresh` takes no value: write just `fresh`"));
                }
                expect_end_of_arg(input)?;
                return Ok(Arg::Source(span, Source::Fresh));
            }
            _ => return Err(unknown_key(&key, input)),
        };
        if !input.peek(Token![=]) {
            return Err(Error::new(
                span,
                format!("`{key}` needs a value: write `{key} = EXPR`"),
            ));
        }
        input.parse::<Token![=]>()?;
        if input.is_empty() || input.peek(Token![,]) {
            return Err(Error::new(
                span,
                format!("`{key}` needs a value: write an expression after the `=`"),
            ));
        }
        let value = input.parse()?;
        expect_end_of_arg(input)?;
        Ok(make(span, value))
    }
}

/// `link = peer`, of which the key has been read.
fn parse_link(span: Span, input: ParseStream<'_>) -> Result<Arg> {
    const FORM: &str = "`link` takes the name that the peer is to have in the body: \
         write `fresh, link = peer`";
    let name = (|| -> Result<Ident> {
        input.parse::<Token![=]>()?;
        let name = input.parse()?;
        expect_end_of_arg(input)?;
        Ok(name)
    })();
    name.map(Arg::Link).map_err(|_| Error::new(span, FORM))
}

/// `syn` would say only "expected `,`", which leaves out why.
fn expect_end_of_arg(input: ParseStream<'_>) -> Result<()> {
    if input.is_empty() || input.peek(Token![,]) {
        return Ok(());
    }
    Err(input.error("expected `,` and the next argument, or the end of `#[in_netns(...)]`"))
}

fn unknown_key(key: &Ident, rest: ParseStream<'_>) -> Error {
    // `#[in_netns(blue)]`: a word alone is a name that lacks its quotes.
    let message = if rest.is_empty() || rest.peek(Token![,]) {
        format!("unknown key `{key}`: the name of a namespace goes in quotes, `\"{key}\"`")
    } else {
        format!("unknown key `{key}`: expected a namespace ({FORMS}) or `executor = EXPR`")
    };
    Error::new(key.span(), message)
}

/// Refuses at compile time what `Netns::open` would refuse at every call.
fn check_name(name: &LitStr) -> Result<()> {
    let value = name.value();
    let message = if value.is_empty() {
        format!("the name of a namespace cannot be empty: give {FORMS}")
    } else if value.contains('/') {
        format!(
            "the name of a namespace cannot contain a slash: for a path write `path = {value:?}`"
        )
    } else if value == "." || value == ".." {
        format!(
            "`{value}` cannot name a namespace: give a name that `ip netns list` shows, \
             or `path = EXPR`"
        )
    } else if value.contains('\0') {
        "the name of a namespace cannot contain a NUL character: remove it".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(name.span(), message))
}

/// The function under the attribute. Its body stays as it was written: this
/// crate need not know every syntax that the compiler does.
#[derive(Debug)]
pub(crate) struct Function {
    /// With the body's inner attributes, which move to the outside.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: Group,
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        if !peek_fn(input) {
            return Err(input.error(
                "`#[in_netns]` applies to functions only, because it runs a function's body \
                 elsewhere: put it on each function that needs it",
            ));
        }
        let sig: Signature = input.parse()?;
        refuse_qualifiers(&sig)?;
        if input.peek(Token![;]) {
            return Err(Error::new(
                sig.ident.span(),
                format!(
                    "`{}` has no body that could run in a namespace: \
                     put `#[in_netns]` on the function that implements it",
                    sig.ident
                ),
            ));
        }

        let body = parse_body(input)?;
        if sig.asyncness.is_some() {
            refuse_borrowed(&sig, &body.stream())?;
        }
        let (inner, body) = split_inner_attributes(body)?;
        attrs.extend(inner);
        Ok(Function {
            attrs,
            vis,
            sig,
            body,
        })
    }
}

/// Tells whether a function's signature comes next, whatever its qualifiers.
fn peek_fn(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    let qualifiers = || -> Result<()> {
        ahead.parse::<Option<Token![const]>>()?;
        ahead.parse::<Option<Token![async]>>()?;
        ahead.parse::<Option<Token![unsafe]>>()?;
        ahead.parse::<Option<Abi>>()?;
        Ok(())
    };
    qualifiers().is_ok() && ahead.peek(Token![fn])
}

fn refuse_qualifiers(sig: &Signature) -> Result<()> {
    if let Some(token) = &sig.constness {
        return Err(Error::new(
            token.span(),
            "`#[in_netns]` cannot stand on a `const fn`: the compiler has no namespace to run \
             it in; remove `const`",
        ));
    }
    if let Some(variadic) = &sig.variadic {
        return Err(Error::new(
            variadic.span(),
            "`#[in_netns]` cannot stand on a function with C-variadic arguments: they cannot be \
             sent to another thread; take a slice instead",
        ));
    }
    Ok(())
}

fn parse_body(input: ParseStream<'_>) -> Result<Group> {
    let mut tree: TokenTree = input.parse()?;
    loop {
        match tree {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return Ok(group),
            // A `$body:block` of a `macro_rules!` comes in an invisible group.
            TokenTree::Group(group) if group.delimiter() == Delimiter::None => {
                tree = syn::parse2(group.stream())?;
            }
            other => return Err(Error::new(other.span(), "expected the function's body")),
        }
    }
}

/// Takes `#![...]` off the front of the body, where it could not stay: a
/// closure's block takes no inner attributes.
fn split_inner_attributes(body: Group) -> Result<(Vec<Attribute>, Group)> {
    let starts_with_inner = {
        let mut tokens = body.stream().into_iter();
        matches!(tokens.next(), Some(TokenTree::Punct(punct)) if punct.as_char() == '#')
            && matches!(tokens.next(), Some(TokenTree::Punct(punct)) if punct.as_char() == '!')
    };
    if !starts_with_inner {
        // The very same group, so that its braces keep their own spans.
        return Ok((Vec::new(), body));
    }
    let split = |input: ParseStream<'_>| -> Result<(Vec<Attribute>, TokenStream)> {
        let mut attrs = input.call(Attribute::parse_inner)?;
        for attr in &mut attrs {
            attr.style = syn::AttrStyle::Outer;
        }
        Ok((attrs, input.parse()?))
    };
    let (attrs, rest) = syn::parse::Parser::parse2(split, body.stream())?;
    let mut group = Group::new(body.delimiter(), rest);
    group.set_span(body.span());
    Ok((attrs, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Result<Args> {
        syn::parse_str(text)
    }

    fn refusal(text: &str) -> String {
        args(text).expect_err(text).to_string()
    }

    #[test]
    fn every_form_of_source_is_understood() {
        assert!(
            matches!(args("\"blue\"").unwrap().source, Source::Literal(name) if name.value() == "blue")
        );
        assert!(matches!(args("name = n").unwrap().source, Source::Name(_)));
        assert!(matches!(args("path = p").unwrap().source, Source::Path(_)));
        assert!(matches!(
            args("pid = self.child.id()").unwrap().source,
            Source::Pid(_)
        ));
        assert!(matches!(
            args("ns = &self.ns").unwrap().source,
            Source::Ns(_)
        ));
        assert!(matches!(args("fresh").unwrap().source, Source::Fresh));
    }

    #[test]
    fn executor_stands_on_either_side_and_a_last_comma_is_fine() {
        for text in [
            "fresh, executor = e",
            "executor = e, fresh,",
            "executor = f(a, b), fresh",
        ] {
            assert!(args(text).unwrap().executor.is_some(), "{text}");
        }
        assert!(args("fresh").unwrap().executor.is_none());
    }

    #[test]
    fn link_takes_a_name_and_a_fresh_namespace() {
        for text in ["fresh, link = peer", "link = peer, fresh, executor = e"] {
            assert_eq!(args(text).unwrap().link.unwrap(), "peer", "{text}");
        }
        for text in ["fresh, link", "fresh, link = 1", "fresh, link = a.b"] {
            assert!(
                refusal(text).contains("write `fresh, link = peer`"),
                "{text}"
            );
        }
        assert!(refusal("ns = n, link = peer").contains("only a `fresh`"));
        assert!(refusal("fresh, link = a, link = b").contains("netns_exec_lab::Lab"));
    }

    #[test]
    fn names_that_open_would_refuse_are_refused_here() {
        assert!(refusal("\"\"").contains("empty"));
        assert!(refusal("\"/run/netns/blue\"").contains("`path = \"/run/netns/blue\"`"));
        assert!(refusal("\"..\"").contains("cannot name"));
        assert!(refusal("\"a\\0b\"").contains("NUL"));
    }

    #[test]
    fn word_without_quotes_is_told_about_quotes() {
        assert!(refusal("blue").contains("goes in quotes, `\"blue\"`"));
        assert!(refusal("netns = n").contains("expected a namespace (`\"NAME\"`"));
    }

    #[test]
    fn inner_attributes_of_the_body_move_to_the_outside() {
        let function: Function =
            syn::parse_str("#[inline] fn f() { #![allow(unused)] let x = 1; }").unwrap();
        assert_eq!(function.attrs.len(), 2);
        assert!(
            function
                .attrs
                .iter()
                .all(|a| matches!(a.style, syn::AttrStyle::Outer))
        );
        assert_eq!(function.body.stream().to_string(), "let x = 1 ;");
    }

    // Here and not among the compile-fail tests, because the compiler adds a
    // complaint of its own that changes with its version.
    #[test]
    fn variadic_arguments_are_refused() {
        let text = "unsafe extern \"C\" fn log(format: *const u8, ...) {}";
        let error = syn::parse_str::<Function>(text).expect_err(text);
        assert!(error.to_string().contains("take a slice"));
    }

    #[test]
    fn items_that_begin_like_functions_are_told_apart() {
        for text in [
            "const X: u8 = 1;",
            "unsafe impl Send for X {}",
            "extern \"C\" {}",
            "mod m {}",
        ] {
            let error = syn::parse_str::<Function>(text).expect_err(text);
            assert!(
                error.to_string().contains("functions only"),
                "{text}: {error}"
            );
        }
        for text in [
            "fn f() {}",
            "unsafe extern \"C\" fn f() {}",
            "pub(crate) unsafe fn f() {}",
        ] {
            syn::parse_str::<Function>(text).expect(text);
        }
    }
}
