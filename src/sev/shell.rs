//! The words of a file that a shell reads: where they begin, and whether they are what they seem. Nothing is evaluated.

#![forbid(unsafe_code)]

/// A word outside of quotation marks and comments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    /// Where it begins.
    pub(super) at: usize,
    /// It begins its line, but for an `export`, and its line is in no block of commands.
    pub(super) first: bool,
}

/// The words of a text, in order, and whether its end is outside of everything that begins in it: a line that is added
/// there is a command of its own.
pub(super) fn words(text: &str) -> (Vec<Word>, bool) {
    let mut reader = Reader::default();
    for (at, c) in text.char_indices() {
        reader.take(text, at, c);
    }
    reader.end_word(text, text.len());
    let goes_on = reader.escaped || (text.ends_with('\n') && reader.line.is_none());
    let neutral = reader.quote.is_none() && !goes_on && !reader.is_inside();
    (reader.words, neutral)
}

#[derive(Default)]
struct Reader {
    words: Vec<Word>,
    /// The word that is being read.
    word: Option<usize>,
    quote: Option<char>,
    escaped: bool,
    comment: bool,
    /// Where the line begins that is not the rest of another; `None`: this one is.
    line: Option<usize>,
    begun: bool,
    /// `if`, `case`, `for`, `{` and the like that have not ended.
    blocks: usize,
    /// The same of `(`.
    brackets: usize,
    /// After a here-document everything may be its text: where it ends is not looked for.
    document: bool,
    before: char,
}

impl Reader {
    fn is_inside(&self) -> bool {
        self.blocks > 0 || self.brackets > 0 || self.document
    }

    fn take(&mut self, text: &str, at: usize, c: char) {
        if !self.begun {
            self.begun = true;
            self.line = Some(0);
        }
        let before = std::mem::replace(&mut self.before, c);
        if std::mem::take(&mut self.escaped) {
            if c == '\n' {
                self.line = None;
                // The mark alone is no word.
                if self.word.is_some_and(|from| from + 1 == at) {
                    self.word = None;
                    self.words.pop();
                }
            }
            return;
        }
        match self.quote {
            Some(mark) if c == mark => self.quote = None,
            Some('"') if c == '\\' => self.escaped = true,
            Some(_) => {}
            None if self.comment => {
                if c == '\n' {
                    self.comment = false;
                    self.line = Some(at + 1);
                }
            }
            None => self.code(text, at, c, before),
        }
    }

    fn code(&mut self, text: &str, at: usize, c: char, before: char) {
        match c {
            '#' if self.word.is_none() => self.comment = true,
            '\n' => {
                self.end_word(text, at);
                self.line = Some(at + 1);
            }
            ' ' | '\t' | '\r' | ';' | '&' | '|' => self.end_word(text, at),
            '(' => {
                self.end_word(text, at);
                self.brackets += 1;
            }
            // Also after a pattern of `case`, which has no other one.
            ')' => {
                self.end_word(text, at);
                self.brackets = self.brackets.saturating_sub(1);
            }
            _ => {
                if self.word.is_none() {
                    self.begin_word(text, at);
                }
                match c {
                    '"' | '\'' | '`' => self.quote = Some(c),
                    '\\' => self.escaped = true,
                    '<' if before == '<' => self.document = true,
                    _ => {}
                }
            }
        }
    }

    fn begin_word(&mut self, text: &str, at: usize) {
        self.word = Some(at);
        let lead = self.line.and_then(|line| text.get(line..at));
        let first = lead.is_some_and(|lead| {
            lead.is_empty() || (lead.starts_with("export") && lead.trim_end() == "export")
        });
        self.words.push(Word {
            at,
            first: first && !self.is_inside(),
        });
    }

    fn end_word(&mut self, text: &str, at: usize) {
        let Some(word) = self.word.take().and_then(|from| text.get(from..at)) else {
            return;
        };
        match word {
            "if" | "case" | "for" | "while" | "until" | "{" => self.blocks += 1,
            "fi" | "esac" | "done" | "}" => self.blocks = self.blocks.saturating_sub(1),
            _ => {}
        }
    }
}
