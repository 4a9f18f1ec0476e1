//! CLIP's tokenizer: a prompt to a row of token ids of fixed length.
//!
//! The pipeline is the one of transformers' `CLIPTokenizer`, built here from a vocabulary and
//! merges: NFC, runs of white space to one space, lower case; words split by CLIP's expression;
//! byte-pair merges over bytes, a word's last piece ending in `</w>`. A `tokenizer.json` gives
//! its vocabulary, merges and added tokens; the pipeline and the lengths of truncation and padding
//! written in it are not followed, as transformers 5 does not follow them for this tokenizer.

mod read;

use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer as Pipeline,
    models::bpe::BPE,
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

use self::read::{Source, Special, Words};
use crate::weights::{Files, FilesError};

/// What ends a word's last piece.
const END_OF_WORD: &str = "</w>";
/// CLIP's expression for the pieces of a text that merges do not cross.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Tokenizer files are missing, or do not fit together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be had.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A folder has neither form of a vocabulary.
    #[error("{folder}: expected `tokenizer.json`, or `vocab.json` and `merges.txt`")]
    NoVocabulary {
        /// The folder.
        folder: String,
    },
    /// A value in a file is not what it should be.
    #[error("{file}: `{key}`: expected {expected}, found {found}")]
    Invalid {
        /// The file.
        file: String,
        /// The key, or the place.
        key: String,
        /// What should be there.
        expected: String,
        /// What is.
        found: String,
    },
    /// A setting is one that this crate does not follow.
    #[error("{file}: `{key}`: only {expected} is supported, found {found}")]
    Unsupported {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is supported.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Two tokens of the vocabulary have the same id.
    #[error("{file}: the tokens {first:?} and {second:?} both have the id {id}")]
    DuplicateId {
        /// The file.
        file: String,
        /// The id.
        id: u32,
        /// One token.
        first: String,
        /// The other.
        second: String,
    },
    /// A merge is not two pieces.
    #[error("{file}: merge {number}: expected two pieces with a space between, found {found}")]
    InvalidMerge {
        /// The file.
        file: String,
        /// The merge's number, from 1.
        number: usize,
        /// What is there.
        found: String,
    },
    /// A merge's piece, or what it makes, is not in the vocabulary.
    #[error("{file}: merge {number} needs the token {token:?}, which the vocabulary does not have")]
    UnknownMerge {
        /// The file.
        file: String,
        /// The merge's number, from 1.
        number: usize,
        /// The token.
        token: String,
    },
    /// A special token is not in the vocabulary.
    #[error("{file}: the {role} {token:?} is not in the vocabulary")]
    MissingSpecialToken {
        /// The file that names the token, or should.
        file: String,
        /// What it is for: `bos_token`, say.
        role: String,
        /// The token.
        token: String,
    },
    /// An added token would get another id than its file says.
    #[error("{file}: the added token {token:?}: expected the id {expected}, found {found}")]
    AddedTokenId {
        /// The file.
        file: String,
        /// The token.
        token: String,
        /// The id in the file.
        expected: u32,
        /// The id by the vocabulary.
        found: u32,
    },
    /// The `tokenizers` crate refused to build or to run the pipeline.
    #[error("{folder}: the tokenizer failed: {reason}")]
    Failed {
        /// The tokenizer's folder.
        folder: String,
        /// What it said.
        reason: String,
    },
}

/// A prompt as a text encoder takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Exactly the tokenizer's length: begin, the prompt, end, padding.
    pub ids: Vec<u32>,
    /// How many of them are the prompt's own, begin, end and padding left out.
    pub tokens: usize,
    /// What was cut from the end because it did not fit.
    pub truncated: Option<Truncated>,
}

/// The end of a prompt that did not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// How many tokens were cut.
    pub tokens: usize,
    /// Their text, in lower case as the tokenizer reads it.
    pub text: String,
}

/// CLIP's tokenizer, with the vocabulary of one checkpoint.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pipeline: Pipeline,
    folder: String,
    max_length: usize,
    bos: u32,
    eos: u32,
    pad: u32,
    vocabulary: usize,
}

impl Tokenizer {
    /// Reads the tokenizer in `folder` (`tokenizer`, say): `tokenizer.json` if there is one, else
    /// `vocab.json` and `merges.txt`; with them `tokenizer_config.json`, and
    /// `special_tokens_map.json` and `added_tokens.json` where they are.
    pub fn load(files: &Files, folder: &str) -> Result<Self, TokenizerError> {
        let source = Source { files, folder };
        let words = source.words()?;
        let special = source.special(&words)?;
        let ids = [("bos_token", &special.bos), ("eos_token", &special.eos)];
        let [bos, eos] = ids.map(|(role, token)| words.special_id(role, token, &special));
        let (bos, eos) = (bos?, eos?);
        let pad = words.special_id("pad_token", &special.pad, &special)?;
        words.special_id("unk_token", &special.unk, &special)?;
        let folder = files.name(folder);
        let pipeline = build(&folder, words, &special)?;
        let vocabulary = pipeline.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { pipeline, folder, max_length: special.max_length, bos, eos, pad, vocabulary })
    }

    /// The ids of a prompt: begin, as many of its tokens as fit, end, padding.
    pub fn encode(&self, prompt: &str) -> Result<Encoded, TokenizerError> {
        let encoding = self.pipeline.encode_fast(prompt, false).map_err(|error| self.failed(&error))?;
        let all = encoding.get_ids();
        // begin and end take two places
        let room = self.max_length.saturating_sub(2);
        let (kept, cut) = all.split_at(all.len().min(room));
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.bos);
        ids.extend_from_slice(kept);
        ids.push(self.eos);
        ids.resize(self.max_length, self.pad);
        let truncated = match cut {
            [] => None,
            cut => Some(Truncated { tokens: cut.len(), text: self.text(cut)? }),
        };
        Ok(Encoded { ids, tokens: kept.len(), truncated })
    }

    /// How many ids [`Tokenizer::encode`] gives.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// One more than the largest id: a text encoder's table needs as many rows.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The id of the token that begins every prompt.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id of the token that ends every prompt.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id of the token that fills the places after the end.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    fn text(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = self.pipeline.decode(ids, false).map_err(|error| self.failed(&error))?;
        Ok(text.replace(END_OF_WORD, " ").trim().to_string())
    }

    fn failed(&self, error: &tokenizers::Error) -> TokenizerError {
        failed(&self.folder, error)
    }
}

fn failed(folder: &str, error: &tokenizers::Error) -> TokenizerError {
    TokenizerError::Failed { folder: folder.to_string(), reason: error.to_string() }
}

/// CLIP's pipeline over a vocabulary whose merges have been checked.
fn build(folder: &str, words: Words, special: &Special) -> Result<Pipeline, TokenizerError> {
    let failed = |error: tokenizers::Error| failed(folder, &error);
    let file = words.file.clone();
    let bpe = BPE::builder()
        .vocab_and_merges(words.vocab, words.merges)
        .unk_token(special.unk.clone())
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(END_OF_WORD.to_string())
        .build()
        .map_err(failed)?;
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".to_string()), " ").map_err(failed)?;
    let split = Split::new(SplitPattern::Regex(WORDS.to_string()), SplitDelimiterBehavior::Removed, true)
        .map_err(failed)?;
    let bytes = ByteLevel::new(false, true, true);
    let mut pipeline = Pipeline::new(bpe);
    pipeline
        .with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])))
        .map_err(failed)?
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![split.into(), bytes.into()])))
        .with_decoder(Some(ByteLevel::default()));
    let tokens: Vec<AddedToken> = special.added.iter().map(|added| added.token.clone()).collect();
    pipeline.add_tokens(tokens).map_err(failed)?;
    for added in &special.added {
        let found = pipeline.token_to_id(&added.token.content);
        if let (Some(expected), Some(found)) = (added.id, found)
            && expected != found
        {
            let token = added.token.content.clone();
            return Err(TokenizerError::AddedTokenId { file, token, expected, found });
        }
    }
    Ok(pipeline)
}
