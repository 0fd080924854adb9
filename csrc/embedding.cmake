# liblatrt.so: the runtime and its C API over the CPU engine.
include(GNUInstallDirs)
file(STRINGS ${PROJECT_SOURCE_DIR}/la_trt/__init__.py LATRT_VERSION_LINE REGEX "^__version__ = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" LATRT_VERSION "${LATRT_VERSION_LINE}")

add_library(latrt_runtime STATIC
  csrc/runtime/bundle.cpp
  csrc/runtime/config.cpp
  csrc/runtime/drafter.cpp
  csrc/runtime/image.cpp
  csrc/runtime/json.cpp
  csrc/runtime/model.cpp
  csrc/runtime/pattern.cpp
  csrc/runtime/policy.cpp
  csrc/runtime/random.cpp
  csrc/runtime/rope.cpp
  csrc/runtime/safetensors.cpp
  csrc/runtime/sampling.cpp
  csrc/runtime/session.cpp
  csrc/runtime/sha256.cpp
  csrc/runtime/template.cpp
  csrc/runtime/template_parse.cpp
  csrc/runtime/text_stream.cpp
  csrc/runtime/tokenizer.cpp
  csrc/runtime/unicode.cpp)
target_link_libraries(latrt_runtime PUBLIC latrt_engine)
# Pixels and angles to the last bit as Python computes them: no fused multiply-add.
target_compile_options(latrt_runtime PRIVATE -ffp-contract=off)

add_library(latrt_capi OBJECT csrc/capi/latrt.cpp)
target_link_libraries(latrt_capi PUBLIC latrt_runtime)
target_include_directories(latrt_capi PUBLIC csrc/include)
target_compile_definitions(latrt_capi PRIVATE LATRT_VERSION="${LATRT_VERSION}")

add_library(latrt SHARED)
add_library(latrt::latrt ALIAS latrt)
target_link_libraries(latrt PRIVATE latrt_capi)
target_include_directories(latrt PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
if(NOT APPLE)
  target_link_options(latrt PRIVATE
    -Wl,--version-script=${PROJECT_SOURCE_DIR}/csrc/capi/latrt.map)
endif()
set_target_properties(latrt PROPERTIES VERSION ${LATRT_VERSION} SOVERSION 0)

# find_package(latrt) and pkg-config latrt.
if(NOT LATRT_PYTHON)
  include(CMakePackageConfigHelpers)
  set(LATRT_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/latrt)
  configure_package_config_file(csrc/latrt-config.cmake.in ${PROJECT_BINARY_DIR}/latrt-config.cmake
    INSTALL_DESTINATION ${LATRT_CMAKE_DIR})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/latrt-config-version.cmake
    VERSION ${LATRT_VERSION} COMPATIBILITY SameMinorVersion)
  # From where latrt.pc will lie, so that `cmake --install --prefix` may choose another prefix.
  file(RELATIVE_PATH LATRT_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  configure_file(csrc/latrt.pc.in ${PROJECT_BINARY_DIR}/latrt.pc @ONLY)
  set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME embedding)
  install(TARGETS latrt EXPORT latrt-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT latrt-targets NAMESPACE latrt:: DESTINATION ${LATRT_CMAKE_DIR})
  install(DIRECTORY csrc/include/latrt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(FILES ${PROJECT_BINARY_DIR}/latrt-config.cmake
    ${PROJECT_BINARY_DIR}/latrt-config-version.cmake DESTINATION ${LATRT_CMAKE_DIR})
  install(FILES ${PROJECT_BINARY_DIR}/latrt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()

if(LATRT_TESTS)
  add_executable(latrt_probe csrc/tests/probe.cpp)
  target_link_libraries(latrt_probe PRIVATE latrt_capi)
  add_executable(latrt_runtime_tests csrc/tests/main.cpp
    csrc/tests/test_bundle.cpp
    csrc/tests/test_capi.cpp
    csrc/tests/test_misuse.cpp
    csrc/tests/test_runtime.cpp)
  target_link_libraries(latrt_runtime_tests PRIVATE latrt_capi)
  set(LATRT_GOLDEN ${PROJECT_SOURCE_DIR}/tests/embedding/golden)
  target_compile_definitions(latrt_runtime_tests PRIVATE LATRT_GOLDEN="${LATRT_GOLDEN}")
  # Replaces operator new, so it stands alone.
  add_executable(latrt_scarce_tests csrc/tests/main.cpp csrc/tests/test_scarce.cpp)
  target_link_libraries(latrt_scarce_tests PRIVATE latrt_capi ${CMAKE_DL_LIBS})
  target_compile_definitions(latrt_scarce_tests PRIVATE LATRT_GOLDEN="${LATRT_GOLDEN}")
  add_executable(latrt_fuzz csrc/tests/fuzz_bundles.cpp)
  target_link_libraries(latrt_fuzz PRIVATE latrt_capi)
  target_compile_definitions(latrt_fuzz PRIVATE LATRT_GOLDEN="${LATRT_GOLDEN}")
  set(LATRT_FUZZ_COUNT 10000 CACHE STRING "Damaged bundles that the test opens")
  function(latrt_embedding_tests)
    foreach(group runtime bundle capi misuse)
      add_test(NAME ${group} COMMAND latrt_runtime_tests ${group}_)
      set_tests_properties(${group} PROPERTIES TIMEOUT 120)
    endforeach()
    add_test(NAME scarce COMMAND latrt_scarce_tests)
    set_tests_properties(scarce PROPERTIES TIMEOUT 300)
    # Three threads with sessions of one model, each answer compared with Python's.
    add_test(NAME golden COMMAND sh -c "exec $<TARGET_FILE:latrt_probe> 3 < traces.jsonl"
      WORKING_DIRECTORY ${LATRT_GOLDEN})
    set_tests_properties(golden PROPERTIES TIMEOUT 300)
    add_test(NAME fuzz COMMAND latrt_fuzz ${LATRT_FUZZ_COUNT})
    # A size out of a damaged file is an error of ours, not of the sanitizer's allocator.
    set_tests_properties(fuzz PROPERTIES TIMEOUT 1200
      ENVIRONMENT "ASAN_OPTIONS=allocator_may_return_null=1;TSAN_OPTIONS=allocator_may_return_null=1")
  endfunction()
endif()
