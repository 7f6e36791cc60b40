package container

import (
	"math/rand/v2"
	"strconv"
)

// The words of made-up names: a quality and a person of science or computing.
var (
	adjectives = []string{"able", "agile", "amazing", "ample", "apt", "bold", "brave", "bright", "brisk", "calm", "candid", "careful", "clever", "cool", "crisp", "curious", "daring", "deft", "eager", "earnest", "epic", "exact", "fair", "fast", "fervent", "fine", "firm", "focused", "frank", "fresh", "gentle", "gifted", "glad", "grand", "happy", "hardy", "honest", "humble", "ideal", "jolly", "keen", "kind", "lively", "loyal", "lucid", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "prime", "proud", "quick", "quiet", "rapid", "ready", "robust", "sage", "sharp", "silent", "smart", "solid", "spry", "stoic", "strong", "sunny", "sure", "swift", "tidy", "trusty", "upbeat", "vivid", "warm", "wise", "witty", "zealous", "zen"}
	surnames   = []string{"abel", "agnesi", "ampere", "archimedes", "babbage", "banach", "bardeen", "bell", "bernoulli", "blackwell", "bohr", "boole", "bose", "brahmagupta", "cannon", "cantor", "carson", "cauchy", "cerf", "church", "clarke", "cohen", "curie", "darwin", "dijkstra", "dirac", "edison", "einstein", "elion", "engelbart", "euclid", "euler", "faraday", "fermat", "fermi", "feynman", "franklin", "galileo", "galois", "gauss", "germain", "goldberg", "goodall", "hamilton", "hawking", "heisenberg", "hertz", "hodgkin", "hopper", "huygens", "hypatia", "jackson", "johnson", "joliot", "kalam", "kare", "keller", "kepler", "khayyam", "kilby", "knuth", "kowalevski", "lamarr", "lamport", "leavitt", "leibniz", "liskov", "lovelace", "maxwell", "mayer", "mccarthy", "mcclintock", "meitner", "mendel", "mirzakhani", "morse", "newton", "nightingale", "noether", "pascal", "pasteur", "perlman", "pike", "planck", "poincare", "ramanujan", "raman", "ride", "ritchie", "rubin", "sammet", "shannon", "sinoussi", "stallman", "swartz", "tesla", "thompson", "torvalds", "turing", "volta", "wiles", "wilson", "wing", "wozniak", "wright", "wu", "yalow", "yonath"}
)

// randomName makes "adjective_surname", from the second try on with a digit.
func randomName(try int) string {
	n := adjectives[rand.IntN(len(adjectives))] + "_" + surnames[rand.IntN(len(surnames))]
	if try > 0 {
		n += strconv.Itoa(rand.IntN(10))
	}
	return n
}
