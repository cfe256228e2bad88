// libcurl, imported only by ObjectStore. Its setters take variable arguments, which Swift cannot
// pass; these have one type each.
#pragma once
#include <curl/curl.h>

typedef size_t (*rk_curl_body)(char *bytes, size_t size, size_t count, void *context);

static inline CURLcode rk_curl_set_text(CURL *handle, CURLoption option, const char *text) {
    return curl_easy_setopt(handle, option, text);
}
static inline CURLcode rk_curl_set_number(CURL *handle, CURLoption option, long number) {
    return curl_easy_setopt(handle, option, number);
}
static inline CURLcode rk_curl_set_size(CURL *handle, CURLoption option, curl_off_t size) {
    return curl_easy_setopt(handle, option, size);
}
static inline CURLcode rk_curl_set_pointer(CURL *handle, CURLoption option, void *pointer) {
    return curl_easy_setopt(handle, option, pointer);
}
static inline CURLcode rk_curl_set_body(CURL *handle, CURLoption option, rk_curl_body function) {
    return curl_easy_setopt(handle, option, function);
}
static inline long rk_curl_status(CURL *handle) {
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    return status;
}
