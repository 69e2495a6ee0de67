// Package rules holds the tests of the project's own rules: which package may
// import which, how long files and functions are, where unsafe may live, and
// that each package says what it is for. They run on the source tree as it is.
package rules
