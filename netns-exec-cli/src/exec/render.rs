//! From bytes to lines: with a prefix for people, as JSON for machines.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

/// A line that is longer is shown in pieces, for memory to stay bounded.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// The two streams of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    pub(super) fn index(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }
}

/// Cuts a stream of bytes, of any kind, into lines that are rendered.
pub(super) struct Lines {
    renderer: Renderer,
    /// What came since the last line break.
    partial: Vec<u8>,
}

/// What a line becomes.
enum Renderer {
    /// The same, with this in front.
    Prefix(Vec<u8>),
    /// An event.
    Json { netns: String, stream: Stream },
}

#[derive(Serialize)]
struct LineEvent<'a> {
    event: &'static str,
    netns: &'a str,
    stream: Stream,
    line: Text<'a>,
}

/// A string, or bytes when it is none.
#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Lines {
    pub(super) fn new(label: &OsStr, stream: Stream, json: bool) -> Self {
        let renderer = match json {
            true => Renderer::Json {
                netns: label.to_string_lossy().into_owned(),
                stream,
            },
            false => Renderer::Prefix([&visible(label.as_bytes())[..], b": "].concat()),
        };
        Lines {
            renderer,
            partial: Vec::new(),
        }
    }

    /// Takes more of the stream, and returns the lines that are whole now.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LONGEST_LINE {
                self.render(&mut whole);
            }
        }
        whole
    }

    /// Returns what is left, as a line: the next one is another command's.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut last = Vec::new();
        if !self.partial.is_empty() {
            self.render(&mut last);
        }
        last
    }

    fn render(&mut self, into: &mut Vec<u8>) {
        let line = match self.partial.strip_suffix(b"\n") {
            Some(line) => line,
            None => &self.partial,
        };
        match &self.renderer {
            Renderer::Prefix(prefix) => {
                into.extend_from_slice(prefix);
                into.extend_from_slice(line);
                into.push(b'\n');
            }
            Renderer::Json { netns, stream } => into.extend(json_line(&LineEvent {
                event: "line",
                netns,
                stream: *stream,
                line: std::str::from_utf8(line).map_or(Text::Bytes(line), Text::Text),
            })),
        }
        self.partial.clear();
        // One long line must not keep its room for ever, in every stream.
        self.partial.shrink_to(4096);
    }
}

/// A name may hold anything, and must neither steer a terminal nor break a line.
fn visible(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(u8::is_ascii_control) {
        return Cow::Borrowed(name);
    }
    let escape = |&byte: &u8| match byte.is_ascii_control() {
        true => byte.escape_ascii().collect(),
        false => vec![byte],
    };
    name.iter().flat_map(escape).collect()
}

/// A value as one line.
pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("events have string keys and no maps");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: bool) -> Lines {
        Lines::new(OsStr::new("blue"), Stream::Stdout, json)
    }

    #[test]
    fn lines_are_prefixed_whole_however_they_are_cut() {
        let text = b"one\n\n\xff\0two\nthree";
        for cut in 0..=text.len() {
            let mut lines = lines(false);
            let mut shown = lines.push(&text[..cut]);
            shown.extend(lines.push(&text[cut..]));
            assert_eq!(shown, b"blue: one\nblue: \nblue: \xff\0two\n");
            assert_eq!(lines.finish(), b"blue: three\n");
            assert!(lines.finish().is_empty());
        }
    }

    #[test]
    fn endless_line_is_shown_in_pieces() {
        let mut lines = lines(false);
        let mut shown = 0;
        for _ in 0..64 {
            let text = lines.push(&[b'x'; LONGEST_LINE / 16]);
            assert!(lines.partial.len() < LONGEST_LINE);
            shown += text.iter().filter(|&&byte| byte == b'x').count();
        }
        assert_eq!(shown, 4 * LONGEST_LINE);
    }

    #[test]
    fn json_line_is_text_or_bytes() {
        let mut lines = lines(true);
        let shown = lines.push(b"a \"b\"\n\xff\n");
        assert_eq!(
            String::from_utf8(shown).expect("JSON is text"),
            "{\"event\":\"line\",\"netns\":\"blue\",\"stream\":\"stdout\",\"line\":\"a \\\"b\\\"\"}\n\
             {\"event\":\"line\",\"netns\":\"blue\",\"stream\":\"stdout\",\"line\":[255]}\n"
        );
    }

    #[test]
    fn prefix_cannot_break_a_line() {
        let label = OsStr::from_bytes(b"a\nb\x1b\xff");
        let mut lines = Lines::new(label, Stream::Stderr, false);
        assert_eq!(lines.push(b"x\n"), b"a\\nb\\x1b\xff: x\n");
    }
}
